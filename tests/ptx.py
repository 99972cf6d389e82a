"""Runs a CUDA kernel's PTX on the CPU: a block's threads side by side in NumPy.

So what a GPU would do is executed where there is none, inline assembly included; only the step from PTX to machine code
is left out. Memory is the process's own, at its real addresses, and an access that is not within the regions that the
launch names, or not aligned, is an error. So is a race in shared memory: between two barriers no thread may read or
write what another has written, nor write what another has read. Copies by `cp.async` arrive when their thread waits for
them, no sooner. Instructions that the kernels do not have are not there either: they raise NotImplementedError.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from ptx_memory import SHARED_BEGIN, GlobalMemory, PtxMemoryError, SharedMemory, Threads

_INTEGERS = {"b": "u", "u": "u", "s": "i"}


def _dtype(kind: str) -> np.dtype:
    """Of a PTX type, e.g. `u32` or `f64`."""
    if kind == "pred":
        return np.dtype(bool)
    return np.dtype(f"{_INTEGERS.get(kind[0], kind[0])}{int(kind[1:]) // 8}")


@dataclass
class _Instruction:
    name: str  # e.g. "add.s32"
    operands: list[str]
    guard: str  # a predicate, "" for none
    negated: bool


_STATEMENT = re.compile(r"(?:@(!?)([%\w$]+)\s+)?([a-z][\w.:]*)\s*(.*)", re.DOTALL)


class Kernel:
    """The entry of a PTX text, without comments, whose name has `part` in it."""

    def __init__(self, ptx: str, part: str) -> None:
        found = re.search(rf"\.entry\s+(\S*{part}\S*?)\s*\((.*?)\)[^{{]*\{{", ptx, re.DOTALL)
        if found is None:
            raise ValueError(f"no entry with {part!r} in its name")
        self.name, parameters = found.groups()
        body, depth = ptx[found.end() :], 1
        for brace in re.finditer(r"[{}]", body):
            depth += 1 if brace[0] == "{" else -1
            if depth == 0:
                body = body[: brace.start()]
                break
        self.parameters = re.findall(r"\.param\s.*?([\w$]+)(?:\[\d+\])?\s*(?:,|$)", parameters)
        self.registers: dict[str, tuple[str, int]] = {}  # prefix: type, how many
        self.symbols: dict[str, int] = {}  # of shared memory
        self.static_shared = 0
        self.dynamic_shared = re.findall(r"\.extern\s+\.shared.*?([\w$]+)\[\]", ptx)
        self.program: list[_Instruction] = []
        self.labels: dict[str, int] = {}
        for statement in re.findall(r"\.shared\s+\.align\s+\d+\s+\.b8\s+[\w$]+\[\d+\]", ptx):
            if statement not in body and re.search(rf"\b{re.escape(statement.split()[-1].split('[')[0])}\b", body):
                self._declare_shared(statement)
        self._parse(body)

    def _parse(self, body: str) -> None:
        for statement in _statements(body):
            while label := re.match(r"([$\w]+):\s*", statement):
                self.labels[label[1]] = len(self.program)
                statement = statement[label.end() :]
            if not statement:
                continue
            if declared := re.match(r"\.reg\s+\.(\w+)\s+([%\w]+)(?:<(\d+)>)?", statement):
                self.registers[declared[2]] = (declared[1], int(declared[3]) if declared[3] else -1)
            elif statement.startswith(".shared"):
                self._declare_shared(statement)
            elif not statement.startswith("."):
                parts = _STATEMENT.fullmatch(statement)
                assert parts, statement
                operands = [o.strip() for o in re.split(r",(?![^{]*\})", parts[4])] if parts[4] else []
                self.program.append(_Instruction(parts[3], operands, parts[2] or "", parts[1] == "!"))

    def _declare_shared(self, statement: str) -> None:
        shared = re.match(r"\.shared\s+\.align\s+(\d+)\s+\.b8\s+([\w$]+)\[(\d+)\]", statement)
        assert shared, statement
        align = int(shared[1])
        self.static_shared = -(-self.static_shared // align) * align
        self.symbols[shared[2]] = SHARED_BEGIN + self.static_shared
        self.static_shared += int(shared[3])

    def run(
        self, blocks: int, threads: int, arguments: list[bytes], memory: GlobalMemory, dynamic_shared: int = 0
    ) -> int:
        """All blocks, one after the other. One of `arguments` for each parameter. Returns how many instructions were
        executed, each counted once for every warp that had a thread in it."""
        executed = 0
        for number in range(blocks):
            block = _Block(self, number, blocks, threads, arguments, memory, dynamic_shared)
            block.run()
            executed += block.executed
        return executed


def _statements(body: str) -> Iterator[str]:
    """What ends with a semicolon; braces that open a scope are left out, those around operands are not."""
    text = ""
    depth = 0
    for c in body:
        if c == ";":
            yield text.strip()
            text = ""
        elif (c == "{" and (not text.strip() or text.strip().endswith(":"))) or (c == "}" and depth == 0):
            continue
        else:
            depth += (c == "{") - (c == "}")
            text += c
    if text.strip():
        yield text.strip()


class _Block:
    def __init__(
        self, kernel: Kernel, block: int, blocks: int, threads: int, arguments: list[bytes], memory: GlobalMemory,
        dynamic_shared: int,
    ) -> None:  # fmt: skip
        self.kernel, self.threads, self.memory = kernel, threads, memory
        self.shared = SharedMemory(-(-kernel.static_shared // 16) * 16 + dynamic_shared)
        self.symbols = dict(kernel.symbols)
        for name in kernel.dynamic_shared:
            self.symbols[name] = SHARED_BEGIN + -(-kernel.static_shared // 16) * 16
        self.parameters = np.zeros(0, np.uint8)
        for name, value in zip(kernel.parameters, arguments, strict=True):
            self.symbols[name] = len(self.parameters)
            padded = np.frombuffer(value + bytes(-len(value) % 16), np.uint8)
            self.parameters = np.concatenate([self.parameters, padded])
        self.registers = {
            "%tid.x": np.arange(threads, dtype=np.uint32),
            "%ntid.x": np.full(threads, threads, np.uint32),
            "%ctaid.x": np.full(threads, block, np.uint32),
            "%nctaid.x": np.full(threads, blocks, np.uint32),
        }
        self._ready: dict[int, Callable[[Threads], None]] = {}
        self.executed = 0

    # Registers and constants

    def register(self, name: str) -> np.ndarray:
        if name not in self.registers:
            found = re.fullmatch(r"(.*?)(\d*)", name)
            assert found
            kind = self.kernel.registers.get(found[1], self.kernel.registers.get(name))
            if kind is None:
                raise NotImplementedError(f"register {name}")
            dtype = _dtype(kind[0].replace("s", "u") if kind[0] != "pred" else "pred")
            # What nobody has written is no number that looks right.
            self.registers[name] = np.frombuffer(b"\xa5" * self.threads * dtype.itemsize, dtype).copy()
            if kind[0] == "pred":
                self.registers[name] = np.zeros(self.threads, bool)
        return self.registers[name]

    def source(self, operand: str, kind: str) -> Callable[[Threads], np.ndarray]:
        """What gives an operand's values, as numbers of type `kind`."""
        dtype = _dtype(kind)
        constant: np.ndarray | None = None
        if found := re.fullmatch(r"0[fF]([0-9A-Fa-f]{8})", operand):
            constant = np.array(int(found[1], 16), np.uint32).view(np.float32)
        elif found := re.fullmatch(r"0[dD]([0-9A-Fa-f]{16})", operand):
            constant = np.array(int(found[1], 16), np.uint64).view(np.float64)
        elif re.fullmatch(r"-?(0[xX][0-9A-Fa-f]+|\d+)U?", operand):
            bits = int(operand.rstrip("U"), 0) & (1 << 8 * dtype.itemsize) - 1
            constant = np.array(bits != 0 if kind == "pred" else bits, f"u{dtype.itemsize}").view(dtype)
        elif operand in self.symbols:
            constant = np.array(self.symbols[operand], f"u{dtype.itemsize}").view(dtype)
        if constant is not None:
            value = constant
            return lambda threads: np.full(len(threads), value)
        register = self.register(operand)
        if register.dtype.itemsize < dtype.itemsize or (kind == "pred") != (register.dtype == np.dtype(bool)):
            raise NotImplementedError(f"{operand} as {kind}")
        if register.dtype.itemsize > dtype.itemsize:  # of a wider one the low half
            return lambda threads: register[threads].astype(f"u{dtype.itemsize}").view(dtype)
        view = register.view(dtype)
        return lambda threads: view[threads]

    def target(self, operand: str, kind: str) -> Callable[[Threads, np.ndarray], None]:
        """What takes an operand's new values; a register may be wider than they are."""
        register = self.register(operand)
        dtype = _dtype(kind)
        if kind == "pred" or register.dtype.itemsize == dtype.itemsize:
            view = register.view(dtype)
        else:
            view = register.view(f"{dtype.kind}{register.dtype.itemsize}")

        def put(threads: Threads, values: np.ndarray) -> None:
            view[threads] = values

        return put

    def address(self, operand: str) -> Callable[[Threads], np.ndarray]:
        found = re.fullmatch(r"\[\s*([%\w$]+)\s*(?:\+\s*(-?\d+))?\s*\]", operand)
        if found is None:
            raise NotImplementedError(operand)
        offset = np.int64(int(found[2] or 0))
        if found[1] in self.symbols:
            begin = np.uint64(self.symbols[found[1]])
            return lambda threads: np.full(len(threads), begin) + np.uint64(offset)
        register = self.register(found[1])
        return lambda threads: (register[threads].astype(np.int64) + offset).astype(np.uint64)

    # Control

    def run(self) -> None:
        """Always those threads that are furthest behind, so that threads that went apart come together again."""
        program = self.kernel.program
        at = np.zeros(self.threads, np.int64)
        waiting, done = np.zeros(self.threads, bool), np.zeros(self.threads, bool)
        with np.errstate(all="ignore"):
            while True:
                runnable = ~(waiting | done)
                if not runnable.any():
                    if done.all():
                        return
                    self.shared.barrier()
                    waiting[:] = False
                    continue
                here = int(at[runnable].min())
                mine = runnable & (at == here)
                others = at[runnable & ~mine]
                limit = int(others.min()) if len(others) else len(program)
                threads = np.flatnonzero(mine)
                warps = len(np.unique(threads >> 5))
                while here < limit:
                    instruction = program[here]
                    self.executed += warps
                    base = instruction.name.split(".")[0]
                    if base == "bra":
                        goes = self.guarded(instruction, threads)
                        label = self.kernel.labels[instruction.operands[-1]]
                        if len(goes) in (0, len(threads)):
                            here = label if len(goes) else here + 1
                            continue
                        at[threads] = here + 1
                        at[goes] = label
                        break
                    if base in {"bar", "ret"}:
                        (waiting if base == "bar" else done)[threads] = True
                        at[threads] = here + 1
                        break
                    if here not in self._ready:
                        self._ready[here] = self.prepare(instruction)
                    active = self.guarded(instruction, threads)
                    if len(active):
                        self._ready[here](active)
                    here += 1
                else:
                    at[threads] = here

    def guarded(self, instruction: _Instruction, threads: Threads) -> Threads:
        if not instruction.guard:
            return threads
        return threads[self.register(instruction.guard)[threads] != instruction.negated]

    # Instructions

    def prepare(self, instruction: _Instruction) -> Callable[[Threads], None]:
        base, *modifiers = instruction.name.split(".")
        method = getattr(self, f"_{base}", None)
        if base in _BINARY or base == "setp":
            return self._calculate(base, modifiers, instruction.operands)
        if method is None:
            raise NotImplementedError(instruction.name)
        return method(modifiers, instruction.operands)

    def _calculate(self, base: str, modifiers: list[str], operands: list[str]) -> Callable[[Threads], None]:
        kind = modifiers[-1]
        shift = base in {"shl", "shr"}
        sources = [self.source(o, "u32" if shift and n else kind) for n, o in enumerate(operands[1:])]
        function: Callable[..., np.ndarray]
        if base == "setp":
            if len(operands) != 3 or len(modifiers) != 2:
                raise NotImplementedError(f"setp.{'.'.join(modifiers)}")
            function, result = _COMPARISONS[modifiers[0]], "pred"
        else:
            function, result = _BINARY[base], kind
        if base == "mul" and modifiers[0] == "wide":
            wide = _dtype(f"{kind[0]}{2 * int(kind[1:])}")
            result = f"{kind[0]}{2 * int(kind[1:])}"
            put = self.target(operands[0], result)
            return lambda threads: put(threads, sources[0](threads).astype(wide) * sources[1](threads).astype(wide))
        if kind[0] == "f" and base in {"add", "sub", "mul", "div"} and modifiers[0] != "rn":
            raise NotImplementedError(f"{base}.{'.'.join(modifiers)}: it might be fused")
        put = self.target(operands[0], result)
        return lambda threads: put(threads, function(*(s(threads) for s in sources)))

    def _mov(self, modifiers: list[str], operands: list[str]) -> Callable[[Threads], None]:
        kind = modifiers[0]
        if operands[0].startswith("{"):
            names = operands[0].strip("{}").split(",")
            part = f"u{int(kind[1:]) // len(names)}"
            whole = self.source(operands[1], kind.replace("b", "u"))
            puts = [self.target(n.strip(), part) for n in names]

            def split(threads: Threads) -> None:
                parts = np.ascontiguousarray(whole(threads)).view(_dtype(part)).reshape(len(threads), -1)
                for n, put in enumerate(puts):
                    put(threads, parts[:, n])

            return split
        put = self.target(operands[0], kind)
        if operands[1].startswith("{"):
            names = operands[1].strip("{}").split(",")
            sources = [self.source(n.strip(), f"u{int(kind[1:]) // len(names)}") for n in names]

            def join(threads: Threads) -> None:
                parts = np.stack([s(threads) for s in sources], axis=1)
                put(threads, parts.view(_dtype(kind)).reshape(-1))

            return join
        source = self.source(operands[1], kind)
        return lambda threads: put(threads, source(threads))

    def _cvta(self, modifiers: list[str], operands: list[str]) -> Callable[[Threads], None]:
        if "global" not in modifiers:
            raise NotImplementedError(f"cvta.{'.'.join(modifiers)}")
        return self._mov(modifiers[-1:], operands)

    def _cvt(self, modifiers: list[str], operands: list[str]) -> Callable[[Threads], None]:
        if modifiers[:1] == ["rn"] and modifiers[1] in {"bf16x2", "f16x2"}:
            put = self.target(operands[0], "u32")
            high, low = self.source(operands[1], "f32"), self.source(operands[2], "f32")
            narrow = _to_bf16 if modifiers[1] == "bf16x2" else _to_f16
            return lambda threads: put(
                threads, narrow(high(threads)).astype(np.uint32) << 16 | narrow(low(threads)).astype(np.uint32)
            )
        rounded = modifiers[:1] == ["rn"]
        to, kind = modifiers[1:] if rounded else modifiers
        if kind == "f16":
            bits, put = self.source(operands[1], "u16"), self.target(operands[0], to)
            return lambda threads: put(threads, bits(threads).view(np.float16).astype(_dtype(to)))
        if to == "f16":
            bits, put = self.source(operands[1], kind), self.target(operands[0], "u16")
            return lambda threads: put(threads, _to_f16(bits(threads)))
        if (to[0] == "f") != (kind[0] == "f") and not (rounded and to[0] == "f"):
            raise NotImplementedError(f"cvt.{'.'.join(modifiers)}")
        source, put = self.source(operands[1], kind), self.target(operands[0], to)
        return lambda threads: put(threads, source(threads).astype(_dtype(to)))

    def _selp(self, modifiers: list[str], operands: list[str]) -> Callable[[Threads], None]:
        put, (a, b) = self.target(operands[0], modifiers[0]), (self.source(o, modifiers[0]) for o in operands[1:3])
        which = self.source(operands[3], "pred")
        return lambda threads: put(threads, np.where(which(threads), a(threads), b(threads)))

    def _mad(self, modifiers: list[str], operands: list[str]) -> Callable[[Threads], None]:
        if modifiers[0] != "lo":
            raise NotImplementedError(f"mad.{'.'.join(modifiers)}")
        put, (a, b, c) = self.target(operands[0], modifiers[1]), (self.source(o, modifiers[1]) for o in operands[1:])
        return lambda threads: put(threads, a(threads) * b(threads) + c(threads))

    def _dp4a(self, modifiers: list[str], operands: list[str]) -> Callable[[Threads], None]:
        if modifiers != ["u32", "u32"]:
            raise NotImplementedError(f"dp4a.{'.'.join(modifiers)}")
        put, (a, b, c) = self.target(operands[0], "u32"), (self.source(o, "u32") for o in operands[1:])

        def sum_of_products(threads: Threads) -> None:
            x, y, total = a(threads), b(threads), c(threads)
            for at in range(0, 32, 8):
                total = total + (x >> np.uint32(at) & np.uint32(255)) * (y >> np.uint32(at) & np.uint32(255))
            put(threads, total)

        return sum_of_products

    def _prmt(self, modifiers: list[str], operands: list[str]) -> Callable[[Threads], None]:
        if modifiers != ["b32"]:
            raise NotImplementedError(f"prmt.{'.'.join(modifiers)}")
        put, (a, b, which) = self.target(operands[0], "u32"), (self.source(o, "u32") for o in operands[1:])

        def pick(threads: Threads) -> None:
            both = a(threads).astype(np.uint64) | b(threads).astype(np.uint64) << np.uint64(32)
            result = np.zeros(len(threads), np.uint64)
            for n in range(4):
                selected = which(threads).astype(np.uint64) >> np.uint64(4 * n)
                byte = both >> (selected & np.uint64(7)) * np.uint64(8) & np.uint64(255)
                spread = np.where(byte & np.uint64(128), np.uint64(255), np.uint64(0))
                result |= np.where(selected & np.uint64(8), spread, byte) << np.uint64(8 * n)
            put(threads, result.astype(np.uint32))

        return pick

    def _bfe(self, modifiers: list[str], operands: list[str]) -> Callable[[Threads], None]:
        if modifiers != ["u32"]:
            raise NotImplementedError(f"bfe.{'.'.join(modifiers)}")
        put, (a, begin, count) = self.target(operands[0], "u32"), (self.source(o, "u32") for o in operands[1:])

        def field_of_bits(threads: Threads) -> None:
            ones = (np.uint64(1) << count(threads).astype(np.uint64)) - np.uint64(1)
            put(threads, (a(threads).astype(np.uint64) >> begin(threads).astype(np.uint64) & ones).astype(np.uint32))

        return field_of_bits

    def _shf(self, modifiers: list[str], operands: list[str]) -> Callable[[Threads], None]:
        if modifiers[1:] not in (["wrap", "b32"], ["clamp", "b32"]):
            raise NotImplementedError(f"shf.{'.'.join(modifiers)}")
        put, (low, high, by) = self.target(operands[0], "u32"), (self.source(o, "u32") for o in operands[1:])

        def funnel(threads: Threads) -> None:
            both = low(threads).astype(np.uint64) | high(threads).astype(np.uint64) << np.uint64(32)
            n = by(threads) & np.uint32(31) if modifiers[1] == "wrap" else np.minimum(by(threads), 32)
            shift = (n if modifiers[0] == "r" else 32 - n).astype(np.uint64)
            put(threads, (both >> shift).astype(np.uint32))

        return funnel

    def _ld(self, modifiers: list[str], operands: list[str]) -> Callable[[Threads], None]:
        kind = modifiers[-1]
        size = _dtype(kind).itemsize
        names = [n.strip() for n in operands[0].strip("{}").split(",")]
        puts, address = [self.target(n, kind) for n in names], self.address(operands[1])
        constant = "nc" in modifiers

        def load(threads: Threads) -> None:
            at, total = address(threads), size * len(names)
            if (at % np.uint64(total)).any():
                raise PtxMemoryError(f"a load of {total} bytes is not aligned")
            if "param" in modifiers:
                data = self.parameters[at.astype(np.int64)[:, None] + np.arange(total)]
            elif "shared" in modifiers:
                data = self.shared.load(threads, at, total)
            else:
                data = self.memory.load(at, total, constant)
            values = np.ascontiguousarray(data).view(_dtype(kind))
            for n, put in enumerate(puts):
                put(threads, values[:, n])

        return load

    def _st(self, modifiers: list[str], operands: list[str]) -> Callable[[Threads], None]:
        kind = modifiers[-1]
        names = [n.strip() for n in operands[1].strip("{}").split(",")]
        sources, address = [self.source(n, kind) for n in names], self.address(operands[0])

        def store(threads: Threads) -> None:
            at = address(threads)
            data = np.ascontiguousarray(np.stack([s(threads) for s in sources], axis=1)).view(np.uint8)
            if (at % np.uint64(data.shape[1])).any():
                raise PtxMemoryError(f"a store of {data.shape[1]} bytes is not aligned")
            if "shared" in modifiers:
                self.shared.store(threads, at, data)
            else:
                self.memory.store(at, data)

        return store

    def _atom(self, modifiers: list[str], operands: list[str]) -> Callable[[Threads], None]:
        if modifiers != ["shared", "or", "b32"]:
            raise NotImplementedError(f"atom.{'.'.join(modifiers)}")
        address, bits = self.address(operands[1]), self.source(operands[2], "u32")
        return lambda threads: self.shared.add_bits(address(threads), bits(threads))

    def _cp(self, modifiers: list[str], operands: list[str]) -> Callable[[Threads], None]:
        if modifiers == ["async", "wait_all"]:
            return self.shared.wait
        to, start, size = self.address(operands[0]), self.address(operands[1]), int(operands[2])
        if modifiers[0] != "async" or modifiers[-2:] != ["shared", "global"]:
            raise NotImplementedError(f"cp.{'.'.join(modifiers)}")

        def copy(threads: Threads) -> None:
            into, address = to(threads), start(threads)
            if (address % np.uint64(size)).any() or (into % np.uint64(size)).any():
                raise PtxMemoryError(f"a copy of {size} bytes is not aligned")
            self.shared.copy_later(threads, into, self.memory.load(address, size, constant=True))

        return copy


def _to_bf16(x: np.ndarray) -> np.ndarray:
    bits = x.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), 0x7FFF, rounded).astype(np.uint16)


def _to_f16(x: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(x), 0x7FFF, x.astype(np.float16).view(np.uint16)).astype(np.uint16)


def _shift_left(a: np.ndarray, by: np.ndarray) -> np.ndarray:
    bits = 8 * a.dtype.itemsize
    return np.where(by < bits, a << np.minimum(by, bits - 1).astype(a.dtype), 0).astype(a.dtype)


def _shift_right(a: np.ndarray, by: np.ndarray) -> np.ndarray:
    bits = 8 * a.dtype.itemsize
    shifted = a >> np.minimum(by, bits - 1).astype(a.dtype)
    return shifted if a.dtype.kind == "i" else np.where(by < bits, shifted, 0).astype(a.dtype)


def _quotient(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.dtype.kind == "f":
        return a / b
    q = np.abs(a) // np.abs(b)  # towards zero
    return np.where((a < 0) != (b < 0), -q, q).astype(a.dtype) if a.dtype.kind == "i" else q


_BINARY: dict[str, Callable[..., np.ndarray]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": _quotient,
    "rem": lambda a, b: a - _quotient(a, b) * b,
    "min": np.minimum,
    "max": np.maximum,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "not": lambda a: ~a,
    "neg": lambda a: -a,
    "abs": np.abs,
    "shl": _shift_left,
    "shr": _shift_right,
}

_COMPARISONS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: (a != b) & (a == a) & (b == b),
    "neu": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "num": lambda a, b: (a == a) & (b == b),
    "nan": lambda a, b: (a != a) | (b != b),
}
