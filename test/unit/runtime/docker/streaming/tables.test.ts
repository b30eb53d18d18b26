import { IncomingMessage } from "node:http";
import { Socket } from "node:net";
import { describe, expect, test } from "vitest";
import { outcomeText, type SessionOutcome } from "../../../../../agent/runtime/docker/streaming/channels.ts";
import { outputParser } from "../../../../../agent/runtime/docker/frames.ts";
import { chooseProtocol } from "../../../../../agent/runtime/docker/streaming/protocols.ts";
import { parseSizes, type TerminalSize } from "../../../../../agent/runtime/docker/streaming/sizes.ts";
import { streamTypes } from "../../../../../agent/runtime/docker/streaming/spdy-command.ts";
import { OneTimeTokens, tokenLifeMs, tokensMax } from "../../../../../agent/runtime/docker/streaming/tokens.ts";
import { FakeClock } from "../../../kube/fake-clock.ts";

describe("the protocol of a session", () => {
  const spdy = (...offered: string[]) => ({
    connection: "Upgrade",
    upgrade: "SPDY/3.1",
    ...(offered.length === 0 ? {} : { "x-stream-protocol-version": offered }),
  });
  const webSocket = (offered?: string) => ({
    connection: "keep-alive, Upgrade",
    upgrade: "websocket",
    ...(offered === undefined ? {} : { "sec-websocket-protocol": offered }),
  });
  const cases: { kind?: "exec" | "portforward"; headers: Record<string, string | string[]>; want: object }[] = [
    { headers: spdy("v4.channel.k8s.io", "v3.channel.k8s.io"), want: { protocol: "v4.channel.k8s.io", version: 4 } },
    { headers: spdy("v5.channel.k8s.io", "v4.channel.k8s.io"), want: { kind: "spdy", version: 4 } },
    { headers: spdy("v2.channel.k8s.io, v4.channel.k8s.io"), want: { protocol: "v2.channel.k8s.io", version: 2 } },
    { headers: spdy("channel.k8s.io"), want: { version: 1 } },
    { headers: spdy(), want: { kind: "refused", status: 400 } },
    { headers: spdy(" , "), want: { kind: "refused", status: 400 } },
    { headers: spdy("v9.channel.k8s.io"), want: { status: 403, accepted: expect.arrayContaining(["channel.k8s.io"]) } },
    { headers: { "x-stream-protocol-version": "v4.channel.k8s.io" }, want: { kind: "refused", status: 400 } },
    { kind: "portforward", headers: spdy("portforward.k8s.io"), want: { kind: "spdy" } },
    {
      kind: "portforward",
      headers: spdy("v4.channel.k8s.io"),
      want: { status: 403, accepted: ["portforward.k8s.io"] },
    },
    { headers: webSocket(), want: { kind: "websocket", protocol: undefined, version: 1, isBase64: false } },
    { headers: webSocket("v5.channel.k8s.io, v4.channel.k8s.io"), want: { version: 5, isBase64: false } },
    { headers: webSocket("base64.channel.k8s.io"), want: { version: 1, isBase64: true } },
    { headers: webSocket("x, v4.base64.channel.k8s.io"), want: { version: 4, isBase64: true } },
    { headers: webSocket("v3.channel.k8s.io"), want: { kind: "refused", status: 403 } },
    { kind: "portforward", headers: webSocket("v4.base64.channel.k8s.io"), want: { isBase64: true } },
    { kind: "portforward", headers: webSocket("channel.k8s.io"), want: { kind: "refused", status: 403 } },
  ];
  for (const { kind = "exec", headers, want } of cases) {
    test(`${kind}: ${JSON.stringify(headers)}`, () => {
      const request = new IncomingMessage(new Socket());
      for (const [name, value] of Object.entries(headers)) {
        request.headers[name] = Array.isArray(value) ? value.join(", ") : value;
        request.headersDistinct[name] = [value].flat();
      }
      expect(chooseProtocol(kind, request)).toMatchObject(want);
    });
  }
});

describe("what the error stream says", () => {
  const cases: { outcome: SessionOutcome; json: object; text: string | RegExp }[] = [
    { outcome: { kind: "success" }, json: { status: "Success" }, text: "" },
    { outcome: { kind: "exited", exitCode: 0, command: ["a"] }, json: { status: "Success" }, text: "" },
    {
      outcome: { kind: "exited", exitCode: 7, command: ["sh", "-c"] },
      json: { reason: "NonZeroExitCode", details: { causes: [{ reason: "ExitCode", message: "7" }] } },
      text: "command terminated with non-zero exit code: error executing command [sh -c], exit code 7",
    },
    {
      outcome: { kind: "failed", message: "no such thing" },
      json: { status: "Failure", reason: "InternalError", code: 500 },
      text: "Internal error occurred: no such thing",
    },
  ];
  for (const { outcome, json, text } of cases) {
    test(JSON.stringify(outcome), () => {
      for (const version of [4, 5]) expect(JSON.parse(outcomeText(outcome, version))).toMatchObject(json);
      for (const version of [1, 2, 3]) expect(outcomeText(outcome, version)).toBe(text);
    });
  }
});

test("streams that a client opens", () => {
  const all = { stdin: true, stdout: true, stderr: true, tty: false };
  expect(streamTypes(all, 4)).toEqual(["error", "stdin", "stdout", "stderr"]);
  expect(streamTypes({ ...all, tty: true }, 4)).toEqual(["error", "stdin", "stdout", "resize"]);
  expect(streamTypes({ ...all, tty: true }, 2)).toEqual(["error", "stdin", "stdout"]);
  expect(streamTypes({ ...all, stdin: false, stderr: false }, 1)).toEqual(["error", "stdout"]);
});

test("sizes of a terminal, cut anywhere; what is none is passed over", () => {
  const cases: { pieces: string[]; want: (TerminalSize | undefined)[] }[] = [
    { pieces: ['{"Width":80,"Height":24}\n'], want: [{ width: 80, height: 24 }] },
    { pieces: ['{"Width":80,', '"Height":24}{"Width":1'], want: [undefined, { width: 80, height: 24 }] },
    { pieces: ['{"Width":1,"Height":2}{"Width":3,"Height":4}'], want: [{ width: 3, height: 4 }] },
    {
      pieces: ['{"Width":70000,"Height":2}', '{"Width":"1","Height":2}', "{}", "[1]}", "}}"],
      want: Array(5).fill(undefined),
    },
    { pieces: ["x".repeat(100_000), '}{"Width":5,"Height":6}'], want: [undefined, { width: 5, height: 6 }] },
  ];
  for (const { pieces, want } of cases) {
    const parse = parseSizes();
    expect(pieces.map((piece) => parse(Buffer.from(piece)))).toEqual(want);
  }
});

describe("output of a command without a terminal", () => {
  const frame = (stream: number, text: string) => {
    const head = Buffer.alloc(8);
    head[0] = stream;
    head.writeUInt32BE(text.length, 4);
    return Buffer.concat([head, Buffer.from(text)]);
  };
  const bytes = Buffer.concat([frame(1, "one"), frame(2, "two"), frame(1, ""), frame(3, "three"), frame(0, "four")]);

  for (const size of [1, 3, 8, 1000]) {
    test(`comes in frames, also ${size} bytes at a time`, () => {
      const parser = outputParser(false);
      const said: Record<string, string> = {};
      for (let at = 0; at < bytes.length; at += size) {
        for (const { stream, payload } of parser.push(bytes.subarray(at, at + size))) {
          said[stream] = (said[stream] ?? "") + payload.toString();
        }
      }
      expect(said).toEqual({ stdout: "onefour", stderr: "two", system: "three" });
    });
  }

  test("a stream that there is not is an error", () => {
    expect(() => [...outputParser(false).push(frame(9, "x"))]).toThrow("unknown stream 9");
  });

  test("with a terminal the bytes are the output", () => {
    expect([...outputParser(true).push(bytes)]).toEqual([{ stream: "stdout", payload: bytes }]);
  });
});

describe("tokens", () => {
  test("work once, for a minute", async () => {
    const clock = new FakeClock();
    const tokens = new OneTimeTokens<string>(clock);
    const [first, second] = [tokens.issue("a"), tokens.issue("b")];
    expect(first).not.toBe(second);
    expect(tokens.take(first)).toBe("a");
    expect(tokens.take(first)).toBeUndefined();
    await clock.advance(tokenLifeMs);
    expect(tokens.take(second)).toBeUndefined();
    expect(clock.waiting).toBe(0);
  });

  test("are limited in number", async () => {
    const clock = new FakeClock();
    const tokens = new OneTimeTokens<number>(clock);
    for (let i = 0; i < tokensMax; i += 1) tokens.issue(i);
    expect(() => tokens.issue(0)).toThrow(expect.objectContaining({ code: "TooManyRequests" }));
    await clock.advance(tokenLifeMs);
    expect(tokens.take(tokens.issue(1))).toBe(1);
    tokens.clear();
    expect(clock.waiting).toBe(0);
  });
});
