// What is needed of DLPack's C exchange API (version 1), in which torch describes tensors without Python objects: the
// structs of its ABI, and the one function of its table that is called. See `dlpack.h` of github.com/dmlc/dlpack.
#pragma once

#include <cstdint>

namespace n2n::dlpack {

constexpr std::uint32_t kMajorVersion = 1;
constexpr const char* kCapsule = "dlpack_exchange_api";

struct Device {
  std::int32_t type, id;
};

struct DataType {
  std::uint8_t code, bits;
  std::uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  std::int32_t ndim;
  DataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;
  std::uint64_t byte_offset;
};

struct ExchangeApi {
  std::uint32_t major, minor;
  ExchangeApi* previous;  // of an older version
  void* allocate;
  void* managed_from_object;
  void* managed_to_object;
  int (*describe)(void* object, Tensor* out);  // may be null; 0, or -1 with a Python exception
  void* current_stream;
};

}  // namespace n2n::dlpack
