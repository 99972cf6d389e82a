// From a dtype code to a storage type.
#pragma once

#include <stdexcept>

#include "common.h"

namespace n2n {

template <class S>
struct Type {
  using storage = S;
};

template <class Body>
void dispatch(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::kFloat32: return body(Type<float>{});
    case DType::kFloat64: return body(Type<double>{});
    case DType::kBFloat16: return body(Type<bf16>{});
    case DType::kFloat16: return body(Type<f16>{});
  }
  throw std::invalid_argument("unknown dtype code");
}

}  // namespace n2n
