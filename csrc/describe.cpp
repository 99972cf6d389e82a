// What the tensors of a list are, as rows of a table.
#include <algorithm>

#include "common.h"
#include "dlpack.h"
#include "host.h"

namespace py = pybind11;

namespace n2n {
namespace {

constexpr int kDims = 5;

// A tensor as `n2n_kernels/described.py` has it.
struct Row {
  i64 address, device, dtype, dims, shape[kDims], strides[kDims];
};

const dlpack::ExchangeApi* api_of(const py::object& capsule) {
  auto* api = static_cast<const dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), dlpack::kCapsule));
  if (!api) throw py::error_already_set();
  while (api && api->major > dlpack::kMajorVersion) api = api->previous;
  return api && api->major == dlpack::kMajorVersion && api->describe ? api : nullptr;
}

// Whether torch's table of functions (a capsule) can be used.
bool can_describe(const py::object& capsule) { return api_of(capsule) != nullptr; }

// Of tensors with more dimensions than the table has, the first. What torch has no description of raises its error.
void describe(const py::object& capsule, const py::list& tensors, i64 table) {
  const auto* const api = api_of(capsule);
  Row* row = reinterpret_cast<Row*>(table);
  for (const py::handle tensor : tensors) {
    dlpack::Tensor t;
    if (api->describe(tensor.ptr(), &t) != 0) throw py::error_already_set();
    *row = {reinterpret_cast<i64>(t.data) + static_cast<i64>(t.byte_offset),
            static_cast<i64>(t.device.type) << 32 | t.device.id,
            static_cast<i64>(t.dtype.code) << 32 | static_cast<i64>(t.dtype.bits) << 16 | t.dtype.lanes,
            t.ndim,
            {},
            {}};
    std::copy_n(t.shape, std::min(t.ndim, kDims), row->shape);
    std::copy_n(t.strides, std::min(t.ndim, kDims), row->strides);
    ++row;
  }
}

}  // namespace

void bind_describe(py::module_& m) {
  m.attr("ROW_WORDS") = sizeof(Row) / 8;
  m.def("can_describe", &can_describe);
  m.def("describe", &describe);
}

}  // namespace n2n
