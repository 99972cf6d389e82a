// Large pages for large outputs on the CPU. Fresh memory costs a page fault per page on first touch, which for 4 KB
// pages takes longer than to write it.
#pragma once

#include "common.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace n2n {

// A hint for what of [address, address + bytes) are whole large pages; nothing depends on whether it is heeded.
inline void hint_large_pages(i64 address, i64 bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr i64 kLargePage = i64{2} << 20;
  const i64 begin = (address + kLargePage - 1) / kLargePage * kLargePage;
  const i64 end = (address + bytes) / kLargePage * kLargePage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), static_cast<std::size_t>(end - begin), MADV_HUGEPAGE);
#else
  static_cast<void>(address);
  static_cast<void>(bytes);
#endif
}

}  // namespace n2n
