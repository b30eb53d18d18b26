import { randomBytes } from "node:crypto";
import { expect, test } from "vitest";
import { frameHead, type WebSocketFrame, WebSocketParser } from "../../../../agent/lib/websocket/frames.ts";

const limit = 100_000;

/** A masked frame as a client sends it. */
function frame(first: number, payload: Buffer, mask = randomBytes(4)): Buffer {
  const head = frameHead("binary", payload.length);
  head[0] = first;
  head[1] = (head[1] ?? 0) | 0x80;
  return Buffer.concat([head, mask, payload.map((byte, i) => byte ^ (mask[i & 3] ?? 0))]);
}

function parse(chunks: readonly Buffer[]): WebSocketFrame[] {
  const parser = new WebSocketParser(limit);
  // Pieces are views of memory that the caller may use again.
  return chunks.flatMap((chunk) =>
    [...parser.push(Buffer.from(chunk))].map((one) => ({ ...one, payload: Buffer.from(one.payload) })),
  );
}

/** Messages and control frames, however they were cut. */
function whole(frames: readonly WebSocketFrame[]): string[] {
  const found: string[] = [];
  let message = "";
  for (const one of frames) {
    if (one.kind !== "data") {
      found.push(`${one.kind} ${one.payload.toString("latin1")}`);
      continue;
    }
    message = (one.isFirst ? "" : message) + one.payload.toString("latin1");
    if (one.isLast) found.push(`${one.isBinary ? "binary" : "text"} ${message}`);
  }
  return found;
}

const long = randomBytes(70_000);
const stream = Buffer.concat([
  frame(0x82, Buffer.from("hello")),
  frame(0x81, Buffer.from("text")),
  frame(0x82, Buffer.alloc(0)),
  frame(0x02, Buffer.from("one ")),
  frame(0x89, Buffer.from("are you there?")),
  frame(0x00, Buffer.alloc(0)),
  frame(0x80, Buffer.from("message")),
  frame(0x82, long.subarray(0, 300)),
  frame(0x82, long),
  frame(0x8a, Buffer.alloc(0)),
  frame(0x88, Buffer.of(3, 232)),
]);
const want = [
  "binary hello",
  "text text",
  "binary ",
  "ping are you there?",
  "binary one message",
  `binary ${long.subarray(0, 300).toString("latin1")}`,
  `binary ${long.toString("latin1")}`,
  "pong ",
  `close ${Buffer.of(3, 232).toString("latin1")}`,
];

for (const size of [1, 2, 3, 5, 7, 13, 64, 1000, 16_384, stream.length]) {
  test(`frames that come ${size} bytes at a time are the same frames`, () => {
    const chunks: Buffer[] = [];
    for (let at = 0; at < stream.length; at += size) chunks.push(stream.subarray(at, at + size));
    expect(whole(parse(chunks))).toEqual(want);
  });
}

const broken: { name: string; bytes: Buffer; code: number }[] = [
  { name: "no mask", bytes: Buffer.of(0x82, 1, 0), code: 1002 },
  { name: "an extension's bit", bytes: frame(0xc2, Buffer.from("x")), code: 1002 },
  { name: "an unknown data frame", bytes: frame(0x83, Buffer.from("x")), code: 1002 },
  { name: "an unknown control frame", bytes: frame(0x8b, Buffer.from("x")), code: 1002 },
  { name: "a long ping", bytes: frame(0x89, Buffer.alloc(126)), code: 1002 },
  { name: "a ping in parts", bytes: frame(0x09, Buffer.from("x")), code: 1002 },
  { name: "a continuation of nothing", bytes: frame(0x80, Buffer.from("x")), code: 1002 },
  {
    name: "a message within another",
    bytes: Buffer.concat([frame(0x02, Buffer.from("x")), frame(0x82, Buffer.from("y"))]),
    code: 1002,
  },
  { name: "a long message", bytes: frame(0x82, Buffer.alloc(limit + 1)), code: 1009 },
  {
    name: "a message that grows too long",
    bytes: Buffer.concat([frame(0x02, Buffer.alloc(limit)), frame(0x80, Buffer.from("x"))]),
    code: 1009,
  },
  { name: "a length of 2^63", bytes: Buffer.of(0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4), code: 1009 },
];
for (const { name, bytes, code } of broken) {
  test(`broken: ${name}`, () => expect(() => parse([bytes])).toThrow(expect.objectContaining({ code })));
}
