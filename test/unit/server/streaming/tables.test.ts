import { expect, test } from "vitest";
import { HttpError } from "../../../../agent/server/port.ts";
import { parseResponseHead, requestHead } from "../../../../agent/server/streaming/http-head.ts";
import { isWebSocket } from "../../../../agent/lib/websocket/handshake.ts";
import { offeredTunnels, wantedPorts, wantedStreams } from "../../../../agent/server/streaming/request.ts";
import { type SessionEnd, statusOf } from "../../../../agent/server/streaming/status.ts";

const query = (text: string) => new URLSearchParams(text);

const streamCases: { query: string; want: object | undefined }[] = [
  { query: "output=1&error=1", want: { stdin: false, stdout: true, stderr: true, tty: false } },
  { query: "input=1&output=1&tty=1", want: { stdin: true, stdout: true, stderr: false, tty: true } },
  { query: "output=1&error=1&tty=1", want: { stdin: false, stdout: true, stderr: false, tty: true } },
  { query: "output=true&error=1", want: { stdin: false, stdout: false, stderr: true, tty: false } },
  { query: "", want: undefined },
  { query: "tty=1", want: undefined },
  { query: "error=1&tty=1", want: undefined },
  { query: "input=true&output=yes", want: undefined },
];
for (const { query: text, want } of streamCases) {
  test(`streams of "${text}": ${want === undefined ? "refused" : JSON.stringify(want)}`, () => {
    if (want !== undefined) expect(wantedStreams(query(text))).toEqual(want);
    else {
      expect(() => wantedStreams(query(text))).toThrow(
        new HttpError(400, "you must specify at least 1 of stdin, stdout, stderr"),
      );
    }
  });
}

const portCases: { query: string; want: number[] | RegExp }[] = [
  { query: "port=80", want: [80] },
  { query: "port=80,443&port=65535", want: [80, 443, 65535] },
  { query: "", want: /is required/ },
  { query: "port=", want: /cannot be empty/ },
  { query: "port=0", want: /unable to parse "0"/ },
  { query: "port=65536", want: /unable to parse/ },
  { query: "port=80,", want: /unable to parse/ },
  { query: "port=-1", want: /unable to parse/ },
  { query: "port=1e3", want: /unable to parse/ },
  { query: "port=80;rm", want: /unable to parse/ },
];
for (const { query: text, want } of portCases) {
  test(`ports of "${text}"`, () => {
    if (want instanceof RegExp) expect(() => wantedPorts(query(text))).toThrow(want);
    else expect(wantedPorts(query(text))).toEqual(want);
  });
}

test("what is a WebSocket request and which tunnels it offers", () => {
  const headers = (upgrade: string, protocols = "", connection = "Upgrade") => ({
    headers: { connection, upgrade, "sec-websocket-protocol": protocols },
  });
  expect(isWebSocket(headers("websocket"))).toBe(true);
  expect(isWebSocket(headers("WebSocket", "", "keep-alive, upgrade"))).toBe(true);
  expect(isWebSocket(headers("SPDY/3.1"))).toBe(false);
  expect(isWebSocket(headers("websocket", "", "close"))).toBe(false);
  expect(offeredTunnels(headers("websocket", "SPDY/3.1+portforward.k8s.io, v4.channel.k8s.io"))).toEqual([
    "portforward.k8s.io",
  ]);
  expect(offeredTunnels(headers("websocket", "SPDY/3.1+evil.example"))).toEqual([]);
});

test("the runtime gets the client's headers, but no credentials and no body", () => {
  const rawHeaders = [
    ...["Host", "node:10250", "authorization", "Bearer secret", "X-Stream-Protocol-Version", "v4.channel.k8s.io"],
    ...["X-Stream-Protocol-Version", "v3.channel.k8s.io", "X-Forwarded-For", "10.0.0.9", "Content-Length", "100"],
    ...["Transfer-Encoding", "chunked"],
    ...["Sec-WebSocket-Protocol", "base64url.bearer.authorization.k8s.io.c2VjcmV0, v4.channel.k8s.io"],
  ];
  expect(requestHead({ method: "POST", path: "/exec/tok?x=1", rawHeaders }, "10.0.0.1")).toBe(
    [
      "POST /exec/tok?x=1 HTTP/1.1",
      "Host: node:10250",
      "X-Stream-Protocol-Version: v4.channel.k8s.io",
      "X-Stream-Protocol-Version: v3.channel.k8s.io",
      "Sec-WebSocket-Protocol: v4.channel.k8s.io",
      "X-Forwarded-For: 10.0.0.9, 10.0.0.1",
      "Content-Length: 0",
      "",
      "",
    ].join("\r\n"),
  );
});

const headCases: { text: string; want: object | undefined }[] = [
  {
    text: "HTTP/1.1 101 Switching Protocols\r\nUpgrade: SPDY/3.1\r\nX: a:b ",
    want: { status: 101, statusText: "Switching Protocols", rawHeaders: ["Upgrade", "SPDY/3.1", "X", "a:b"] },
  },
  { text: "HTTP/1.0 404", want: { status: 404, statusText: "", rawHeaders: [] } },
  { text: "HTTP/2 200 OK", want: undefined },
  { text: "HTTP/1.1 99 Low", want: undefined },
  { text: "SSH-2.0-OpenSSH", want: undefined },
  { text: "HTTP/1.1 200 OK\r\nno colon", want: undefined },
  { text: "HTTP/1.1 200 OK\r\n folded: x", want: undefined },
];
for (const { text, want } of headCases) {
  test(`response head ${JSON.stringify(text.slice(0, 40))}`, () => expect(parseResponseHead(text)).toEqual(want));
}

const v4 = "v4.channel.k8s.io";
const exit7 =
  '{"status":"Failure","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"7"}]}}';
const failed = (message: string) =>
  expect.objectContaining({
    status: "Failure",
    reason: "InternalError",
    code: 500,
    message: expect.stringContaining(message),
  });
const statusCases: { name: string; end: SessionEnd; want: unknown }[] = [
  {
    name: "v4: the Status of the runtime",
    end: { text: exit7, protocol: v4, fault: undefined },
    want: JSON.parse(exit7),
  },
  {
    name: "v4: a Status counts however the stream ended",
    end: { text: '{"status":"Success"}', protocol: v4, fault: "connection lost" },
    want: { status: "Success" },
  },
  { name: "v4: text that is no Status", end: { text: "boom", protocol: v4, fault: undefined }, want: failed("boom") },
  { name: "v4: half a Status", end: { text: '{"status":', protocol: v4, fault: "reset" }, want: failed("status") },
  {
    name: "v4: nothing and FIN",
    end: { text: "", protocol: v4, fault: undefined },
    want: { metadata: {}, status: "Success" },
  },
  {
    name: "v4: nothing and reset",
    end: { text: "", protocol: v4, fault: "reset" },
    want: failed("without saying how"),
  },
  { name: "v4: lost", end: { text: "", protocol: v4, fault: "connection lost" }, want: failed("was lost") },
  {
    name: "v2: nothing is success",
    end: { text: "", protocol: "v2.channel.k8s.io", fault: "reset" },
    want: { metadata: {}, status: "Success" },
  },
  {
    name: "v2: a bare message is failure",
    end: { text: "no such file", protocol: "v2.channel.k8s.io", fault: undefined },
    want: failed("error executing command in container: no such file"),
  },
];
for (const { name, end, want } of statusCases) {
  test(`status: ${name}`, () => expect(JSON.parse(statusOf(end, "executing command in container"))).toEqual(want));
}
