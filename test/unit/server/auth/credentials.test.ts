import { IncomingMessage } from "node:http";
import { Socket } from "node:net";
import { describe, expect, test } from "vitest";
import { bearerToken, stripCredentials, webSocketToken } from "../../../../agent/server/auth/credentials.ts";

/** A request with these headers, in every form. */
function requestWith(...headers: [name: string, value: string][]): IncomingMessage {
  const request = new IncomingMessage(new Socket());
  request.rawHeaders.push(...headers.flat());
  for (const [name, value] of headers) {
    const key = name.toLowerCase();
    request.headers[key] ??= value;
    const all = (request.headersDistinct[key] ??= []);
    if (!all.includes(value)) all.push(value);
  }
  return request;
}

describe("bearerToken", () => {
  const cases: { name: string; values: string[]; want: string | undefined }[] = [
    { name: "none", values: [], want: undefined },
    { name: "a token", values: ["Bearer abc.def-_~+/="], want: "abc.def-_~+/=" },
    { name: "any spelling of the scheme", values: ["bEaReR t"], want: "t" },
    { name: "space around", values: ["  Bearer t  "], want: "t" },
    { name: "something behind the token", values: ["Bearer t more of it"], want: "t" },
    { name: "two spaces are an empty token", values: ["Bearer  t"], want: undefined },
    { name: "no token", values: ["Bearer"], want: undefined },
    { name: "an empty token", values: ["Bearer "], want: undefined },
    { name: "nothing", values: [""], want: undefined },
    { name: "another scheme", values: ["Basic dTpw"], want: undefined },
    { name: "a scheme that only begins so", values: ["BearerX t"], want: undefined },
    { name: "no space", values: ["Bearer:t"], want: undefined },
    { name: "the first of two", values: ["Bearer first", "Bearer second"], want: "first" },
    { name: "not the second, if the first is of another scheme", values: ["Basic dTpw", "Bearer t"], want: undefined },
    { name: "a comma is part of it", values: ["Bearer a,Bearer b"], want: "a,Bearer" },
    { name: "UTF-8, which Node.js shows as Latin-1", values: ["Bearer \u00c3\u00a9"], want: "é" },
    { name: "quotes and braces are only text", values: ['Bearer "}{\\'], want: '"}{\\' },
  ];
  for (const { name, values, want } of cases) {
    test(name, () => {
      const request = requestWith(...values.map((value) => ["AUTHORIZATION", value] as [string, string]));
      expect(bearerToken(request)).toBe(want);
    });
  }
});

const encode = (token: string | Buffer) =>
  `base64url.bearer.authorization.k8s.io.${Buffer.from(token).toString("base64url")}`;
const upgrade: [string, string][] = [
  ["Connection", "keep-alive, Upgrade"],
  ["Upgrade", "WebSocket"],
];
const protocols = (...values: string[]) => values.map((v) => ["Sec-WebSocket-Protocol", v] as [string, string]);

describe("webSocketToken", () => {
  test("finds the token beside other subprotocols, in one header or several", () => {
    expect(webSocketToken(requestWith(...upgrade, ...protocols(`${encode("t?~é")}, v5.channel.k8s.io`)))).toBe("t?~é");
    expect(webSocketToken(requestWith(...upgrade, ...protocols("v5.channel.k8s.io", encode("t"))))).toBe("t");
  });

  test("finds none without one, or in a request that is for something else", () => {
    expect(webSocketToken(requestWith(...upgrade))).toBeUndefined();
    expect(webSocketToken(requestWith(...upgrade, ...protocols("v5.channel.k8s.io")))).toBeUndefined();
    expect(webSocketToken(requestWith(...upgrade, ...protocols(`${encode("")}, v5.channel.k8s.io`)))).toBeUndefined();
    const both = protocols(`${encode("t")}, v5.channel.k8s.io`);
    expect(webSocketToken(requestWith(...both))).toBeUndefined();
    expect(webSocketToken(requestWith(["Connection", "Upgrade"], ["Upgrade", "SPDY/3.1"], ...both))).toBeUndefined();
    expect(
      webSocketToken(requestWith(["Connection", "not-upgrade"], ["Upgrade", "websocket"], ...both)),
    ).toBeUndefined();
  });

  const prefix = "base64url.bearer.authorization.k8s.io.";
  const refused: { name: string; values: string[]; message: string }[] = [
    { name: "two tokens", values: [encode("a"), encode("a"), "x"], message: "more than one token" },
    { name: "a token alone", values: [encode("a")], message: "the only subprotocol" },
    { name: "padding", values: [`${prefix}YQ==`, "x"], message: "not base64url" },
    { name: "other characters", values: [`${prefix}a!b`, "x"], message: "not base64url" },
    { name: "standard base64", values: [`${prefix}-_+/`, "x"], message: "not base64url" },
    { name: "a rest that is no byte", values: [`${prefix}YWE`.slice(0, -2), "x"], message: "not base64url" },
    { name: "what is not UTF-8", values: [encode(Buffer.of(0xff, 0xfe)), "x"], message: "not base64url" },
  ];
  for (const { name, values, message } of refused) {
    test(`refuses ${name}`, () => {
      expect(() => webSocketToken(requestWith(...upgrade, ...protocols(...values)))).toThrow(message);
    });
  }
});

describe("stripCredentials", () => {
  test("removes every Authorization header, in every form", () => {
    const request = requestWith(
      ["Host", "n1"],
      ["Authorization", "Bearer s3cret"],
      ["authorization", "Bearer s3cret2"],
      ["X-Other", "y"],
    );
    stripCredentials(request);
    expect(JSON.stringify([request.headers, request.headersDistinct, request.rawHeaders])).not.toContain("s3cret");
    expect(request.rawHeaders).toEqual(["Host", "n1", "X-Other", "y"]);
    expect(request.headers).toEqual({ host: "n1", "x-other": "y" });
  });

  test("leaves the subprotocols that hold no token", () => {
    const request = requestWith(...upgrade, ...protocols("v4.channel.k8s.io", `${encode("s3cret")},v5.channel.k8s.io`));
    stripCredentials(request);
    const name = "sec-websocket-protocol";
    expect(request.headers[name]).toBe("v4.channel.k8s.io,v5.channel.k8s.io");
    expect(request.headersDistinct[name]).toEqual(["v4.channel.k8s.io,v5.channel.k8s.io"]);
    expect(request.rawHeaders.slice(-2)).toEqual([name, "v4.channel.k8s.io,v5.channel.k8s.io"]);
    expect(JSON.stringify(request.rawHeaders)).not.toContain("base64url");
  });

  test("leaves a request without credentials alone", () => {
    const request = requestWith(...upgrade, ...protocols("v4.channel.k8s.io"));
    const before = [...request.rawHeaders];
    stripCredentials(request);
    expect(request.rawHeaders).toEqual(before);
  });
});
