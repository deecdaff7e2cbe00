"""Rules on flat graphs: one compiled here, or one read back from a document that may come from anywhere."""

from ._check import FLAT_RULES, check_flat, check_transfers
from ._columns import Columns, columns_of

__all__ = ["FLAT_RULES", "Columns", "check_flat", "check_transfers", "columns_of"]
