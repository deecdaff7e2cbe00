"""What a plan is written as: a report, documents with a published schema, a plot."""

from ._candidates import PLOT
from ._facts import Facts, gather
from ._selection import choice_lines
from .expert_schema import ExpertDocument, expert_document, expert_schema
from .markdown import report_markdown
from .pareto import pareto_svg
from .schema import StrategyDocument, document_text, strategy_document, strategy_schema
from .sensitivity import Sensitivity, analyse_sensitivity

__all__ = [
    "PLOT",
    "ExpertDocument",
    "Facts",
    "Sensitivity",
    "StrategyDocument",
    "analyse_sensitivity",
    "choice_lines",
    "document_text",
    "expert_document",
    "expert_schema",
    "gather",
    "pareto_svg",
    "report_markdown",
    "strategy_document",
    "strategy_schema",
]
