// The inner loop of a deep copy of modules, which hold a dozen empty containers each.
#include "host.h"

namespace py = pybind11;

namespace n2n {
namespace {

bool is_in(const py::frozenset& kinds, const py::handle value) {
  const int found = PySet_Contains(kinds.ptr(), reinterpret_cast<PyObject*>(Py_TYPE(value.ptr())));
  if (found < 0) throw py::error_already_set();
  return found != 0;
}

// Whether copies share it with the original.
bool is_shared(const py::frozenset& kinds, const py::handle value) {
  if (!PyTuple_CheckExact(value.ptr())) return is_in(kinds, value);
  for (const py::handle entry : py::reinterpret_borrow<py::tuple>(value)) {
    if (!is_in(kinds, entry)) return false;
  }
  return true;
}

// Another empty container like this one; null if it is no container, or holds something.
py::object empty_like(const py::handle value) {
  PyObject *const x = value.ptr(), *made;
  if (PyODict_CheckExact(x)) {
    made = PyODict_SIZE(x) == 0 ? PyODict_New() : nullptr;
  } else if (PyDict_CheckExact(x)) {
    made = PyDict_GET_SIZE(x) == 0 ? PyDict_New() : nullptr;
  } else if (Py_TYPE(x) == &PySet_Type) {
    made = PySet_GET_SIZE(x) == 0 ? PySet_New(nullptr) : nullptr;
  } else {
    made = PyList_CheckExact(x) && PyList_GET_SIZE(x) == 0 ? PyList_New(0) : nullptr;
  }
  if (PyErr_Occurred()) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(made);
}

py::object copied(const py::handle value, const py::dict& memo, const py::frozenset& shared, const py::object& copy) {
  py::object empty = empty_like(value);
  if (!empty && is_shared(shared, value)) return py::reinterpret_borrow<py::object>(value);
  const auto id = py::reinterpret_steal<py::object>(PyLong_FromVoidPtr(value.ptr()));
  if (!id) throw py::error_already_set();
  if (PyObject* const known = PyDict_GetItemWithError(memo.ptr(), id.ptr())) {
    return py::reinterpret_borrow<py::object>(known);
  }
  if (PyErr_Occurred()) throw py::error_already_set();
  if (!empty) return copy(value);
  // However few refer to it: a hook's handle finds the dicts that it is in by weak references.
  if (PyDict_SetItem(memo.ptr(), id.ptr(), empty.ptr()) < 0) throw py::error_already_set();
  return empty;
}

// `copy` copies what is not shared and not in the memo. Where the dicts are one, keys stay.
void copy_values(const py::dict& from, const py::dict& to, const py::dict& memo, const py::frozenset& shared,
                 const py::object& copy) {
  const bool in_place = from.is(to);
  const std::size_t count = from.size();
  Py_ssize_t at = 0;
  PyObject *next_key, *next_value;
  while (PyDict_Next(from.ptr(), &at, &next_key, &next_value)) {
    const auto key = py::reinterpret_borrow<py::object>(next_key), value = py::reinterpret_borrow<py::object>(next_value);
    const py::object made = copied(value, memo, shared, copy);
    if (in_place && made.is(value)) continue;
    const bool keep = in_place || PyUnicode_CheckExact(key.ptr());
    const py::object new_key = keep ? key : copied(key, memo, shared, copy);
    if (PyDict_SetItem(to.ptr(), new_key.ptr(), made.ptr()) < 0) throw py::error_already_set();
    if (from.size() != count) throw std::runtime_error("dictionary changed size during its copy");
  }
}

}  // namespace

void bind_copy_values(py::module_& m) { m.def("copy_values", &copy_values); }

}  // namespace n2n
