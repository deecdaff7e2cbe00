"""The compiler proper: diagnostics, spec, IR, build, cost, emitters, driver and command line."""
