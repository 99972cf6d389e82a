// What the host does for many tensors and modules at once, where a loop in Python would take longer than the kernels.
#pragma once

#include <pybind11/pybind11.h>

namespace n2n {

void bind_describe(pybind11::module_& m);
void bind_copy_values(pybind11::module_& m);

}  // namespace n2n
