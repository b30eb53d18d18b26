/** One entry of a tar archive. Owner is root, times are 0: equal input gives equal bytes, so equal digests. */
export type TarEntry =
  | { kind: "dir"; path: string; mode?: number }
  | { kind: "file"; path: string; content: Uint8Array | string; mode?: number }
  | { kind: "symlink"; path: string; target: string };

const blockBytes = 512;

/** Renders a ustar archive. Paths are relative and at most 100 bytes long (the format's own limit without prefixes). */
export function renderTar(entries: readonly TarEntry[]): Buffer {
  const parts: Buffer[] = [];
  for (const entry of entries) {
    const content = entry.kind === "file" ? Buffer.from(entry.content) : Buffer.alloc(0);
    parts.push(header(entry, content.length), content);
    const rest = content.length % blockBytes;
    if (rest > 0) parts.push(Buffer.alloc(blockBytes - rest));
  }
  parts.push(Buffer.alloc(2 * blockBytes));
  return Buffer.concat(parts);
}

function header(entry: TarEntry, size: number): Buffer {
  const path = entry.kind === "dir" ? `${entry.path.replace(/\/$/, "")}/` : entry.path;
  if (Buffer.byteLength(path) > 100) throw new Error(`tar: path too long: ${path}`);
  const block = Buffer.alloc(blockBytes);
  const mode = entry.kind === "symlink" ? 0o777 : (entry.mode ?? (entry.kind === "dir" ? 0o755 : 0o644));
  const octal = (value: number, width: number) => value.toString(8).padStart(width - 1, "0");
  block.write(path, 0);
  block.write(octal(mode, 8), 100);
  block.write(octal(0, 8), 108); // uid
  block.write(octal(0, 8), 116); // gid
  block.write(octal(size, 12), 124);
  block.write(octal(0, 12), 136); // mtime
  block.fill(" ", 148, 156); // the checksum counts its own field as spaces
  block.write(entry.kind === "file" ? "0" : entry.kind === "symlink" ? "2" : "5", 156);
  if (entry.kind === "symlink") block.write(entry.target, 157);
  block.write("ustar\u000000", 257);
  let sum = 0;
  for (const byte of block) sum += byte;
  block.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148);
  return block;
}
