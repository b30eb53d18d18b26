/**
 * A static ELF program of some 300 bytes that keeps a pod sandbox alive, made without a compiler: it waits for signals,
 * lets the kernel reap its children and exits with 0 on SIGTERM or SIGINT.
 *
 * As PID 1 it has no default signal actions, so both get a handler; SIGCHLD ignored with SA_NOCLDWAIT means that
 * orphans which end leave no zombies.
 */
export function pauseProgram(arch: "x64" | "arm64" = process.arch === "arm64" ? "arm64" : "x64"): Buffer {
  const code = arch === "x64" ? codeX64 : codeArm64;
  const probe = code({ exitAction: 0, ignoreAction: 0 });
  const codeAt = loadAddress + headerBytes;
  const dataAt = Math.ceil((codeAt + probe.bytes.length) / 8) * 8;
  const { bytes, handlerOffset } = code({ exitAction: dataAt, ignoreAction: dataAt + sigactionBytes });
  const data = Buffer.concat([
    sigaction(codeAt + handlerOffset, arch === "x64" ? SA_RESTORER : 0, codeAt + handlerOffset),
    sigaction(SIG_IGN, SA_NOCLDWAIT, 0),
  ]);
  const padding = Buffer.alloc(dataAt - codeAt - bytes.length);
  return elf(arch, Buffer.concat([bytes, padding, data]));
}

const loadAddress = 0x400000;
const headerBytes = 64 + 56;
const SIGINT = 2;
const SIGTERM = 15;
const SIGCHLD = 17;
const SIG_IGN = 1;
const SA_NOCLDWAIT = 2;
const SA_RESTORER = 0x04000000;

// The kernel's struct sigaction on both machines: handler, flags, restorer, mask; 8 bytes each.
const sigactionBytes = 32;

function sigaction(handler: number, flags: number, restorer: number): Buffer {
  const struct = Buffer.alloc(sigactionBytes);
  struct.writeBigUInt64LE(BigInt(handler), 0);
  struct.writeBigUInt64LE(BigInt(flags), 8);
  struct.writeBigUInt64LE(BigInt(restorer), 16);
  return struct;
}

interface DataAddresses {
  exitAction: number;
  ignoreAction: number;
}

interface Code {
  bytes: Buffer;
  /** Where the signal handler begins. */
  handlerOffset: number;
}

function codeX64({ exitAction, ignoreAction }: DataAddresses): Code {
  const imm = (value: number) => [value & 255, (value >> 8) & 255, (value >> 16) & 255, (value >> 24) & 255];
  const onSignal = (signal: number, action: number) => [
    ...[0xb8, ...imm(13)], // mov eax, rt_sigaction
    ...[0xbf, ...imm(signal)], // mov edi, signal
    ...[0xbe, ...imm(action)], // mov esi, action
    ...[0x31, 0xd2], // xor edx, edx
    ...[0x41, 0xba, ...imm(8)], // mov r10d, bytes of the mask
    ...[0x0f, 0x05], // syscall
  ];
  const main = [
    ...onSignal(SIGTERM, exitAction),
    ...onSignal(SIGINT, exitAction),
    ...onSignal(SIGCHLD, ignoreAction),
    ...[0xb8, ...imm(34)], // mov eax, pause
    ...[0x0f, 0x05], // syscall
    ...[0xeb, 0xf7], // jmp to the mov, 9 bytes back
  ];
  const handler = [
    ...[0xb8, ...imm(231)], // mov eax, exit_group
    ...[0x31, 0xff], // xor edi, edi
    ...[0x0f, 0x05], // syscall
  ];
  return { bytes: Buffer.from([...main, ...handler]), handlerOffset: main.length };
}

function codeArm64({ exitAction, ignoreAction }: DataAddresses): Code {
  const movz = (register: number, value: number) => (0xd2800000 | ((value & 0xffff) << 5) | register) >>> 0;
  const movkHigh = (register: number, value: number) => (0xf2a00000 | ((value >>> 16) << 5) | register) >>> 0;
  const svc = 0xd4000001;
  const onSignal = (signal: number, action: number) => [
    movz(0, signal),
    movz(1, action),
    movkHigh(1, action),
    movz(2, 0),
    movz(3, 8), // bytes of the mask
    movz(8, 134), // rt_sigaction
    svc,
  ];
  const wait = [
    ...[movz(0, 0), movz(1, 0), movz(2, 0), movz(3, 0), movz(4, 0)],
    movz(8, 73), // ppoll of nothing, for ever: this machine has no pause
    svc,
  ];
  const main = [
    ...onSignal(SIGTERM, exitAction),
    ...onSignal(SIGINT, exitAction),
    ...onSignal(SIGCHLD, ignoreAction),
    ...wait,
    (0x14000000 | (-wait.length & 0x03ffffff)) >>> 0, // b wait
  ];
  const handler = [movz(0, 0), movz(8, 94), svc]; // exit_group(0)
  const bytes = Buffer.alloc(4 * (main.length + handler.length));
  [...main, ...handler].forEach((word, i) => bytes.writeUInt32LE(word, 4 * i));
  return { bytes, handlerOffset: 4 * main.length };
}

/** One read-and-execute segment that holds headers, code and constants. */
function elf(arch: "x64" | "arm64", body: Buffer): Buffer {
  const size = headerBytes + body.length;
  const header = Buffer.alloc(headerBytes);
  header.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]); // ELF, 64 bit, little endian, version 1
  header.writeUInt16LE(2, 16); // executable
  header.writeUInt16LE(arch === "x64" ? 62 : 183, 18);
  header.writeUInt32LE(1, 20);
  header.writeBigUInt64LE(BigInt(loadAddress + headerBytes), 24); // entry
  header.writeBigUInt64LE(64n, 32); // program headers begin
  header.writeUInt16LE(64, 52);
  header.writeUInt16LE(56, 54);
  header.writeUInt16LE(1, 56);
  header.writeUInt32LE(1, 64); // PT_LOAD
  header.writeUInt32LE(5, 68); // read, execute
  header.writeBigUInt64LE(BigInt(loadAddress), 80);
  header.writeBigUInt64LE(BigInt(loadAddress), 88);
  header.writeBigUInt64LE(BigInt(size), 96);
  header.writeBigUInt64LE(BigInt(size), 104);
  header.writeBigUInt64LE(0x1000n, 112);
  return Buffer.concat([header, body]);
}
