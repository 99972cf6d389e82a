"""The rules: for each operation, what it means for the values and units that pass through it.

One table, from the name of an ATen operation to a short function. An operation that is in no table keeps all the units
that it is given from growing: it is never assumed to be element-wise. (Element-wise operations are recognised by the
tag that PyTorch itself gives them.)
"""

from net2net.rules import complex_numbers, elementwise, movement, norms, products, reductions, weights
from net2net.rules.table import name_of, register, rule_for, unknown

__all__ = [
    "complex_numbers", "elementwise", "movement", "name_of", "norms", "products", "reductions", "register", "rule_for",
    "unknown", "weights",
]  # fmt: skip
