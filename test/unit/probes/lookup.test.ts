import type { LookupAddress } from "node:dns";
import { afterEach, expect, test, vi } from "vitest";
import { lookup } from "../../../agent/probes/lookup.ts";
import { probeHTTP } from "../../../agent/probes/http.ts";
import { probeTCP } from "../../../agent/probes/tcp.ts";
import { startHTTP } from "./servers.ts";
import { forever, targetOf } from "./support.ts";

type Answer = PromiseWithResolvers<LookupAddress[]>;
const asked = vi.hoisted((): { name: string; answer: unknown }[] => []);
vi.mock("node:dns/promises", () => ({
  lookup: async (name: string) => {
    const answer = Promise.withResolvers<LookupAddress[]>();
    asked.push({ name, answer });
    return await answer.promise;
  },
}));
afterEach(() => {
  asked.length = 0;
});
const answerOf = (i: number) => asked[i]?.answer as Answer;

const loopback: LookupAddress[] = [{ address: "127.0.0.1", family: 4 }];

test("a name server that does not answer is asked once for each name, however many probes time out", async () => {
  for (let i = 0; i < 5; i += 1) {
    const http = await probeHTTP(
      { httpGet: { host: "a.example", port: 1 }, timeoutSeconds: 0.02 },
      targetOf(""),
      forever,
    );
    const tcp = await probeTCP(
      { tcpSocket: { host: "b.example", port: 1 }, timeoutSeconds: 0.02 },
      targetOf(""),
      forever,
    );
    expect([http.kind, tcp.kind]).toEqual(["failure", "failure"]);
  }
  expect(asked.map(({ name }) => name)).toEqual(["a.example", "b.example"]);
  answerOf(0).resolve(loopback);
  answerOf(1).resolve(loopback);
});

test("once it answered, it is asked anew, and its answer is used", async () => {
  await using server = await startHTTP((_request, response) => response.end("hello"));
  for (const round of [0, 1]) {
    const httpGet = { host: "a.example", port: server.port };
    const outcome = probeHTTP({ httpGet, timeoutSeconds: 5 }, targetOf(""), forever);
    await vi.waitFor(() => expect(asked).toHaveLength(round + 1));
    answerOf(round).resolve(loopback);
    expect(await outcome).toMatchObject({ kind: "success" });
  }
});

test("a name that nobody knows is a failure", async () => {
  const tcpSocket = { host: "nowhere.example", port: 1 };
  const outcome = probeTCP({ tcpSocket, timeoutSeconds: 5 }, targetOf(""), forever);
  await vi.waitFor(() => expect(asked).toHaveLength(1));
  const err = Object.assign(new Error("getaddrinfo ENOTFOUND nowhere.example"), {
    code: "ENOTFOUND",
    hostname: "nowhere.example",
  });
  answerOf(0).reject(err);
  expect(await outcome).toEqual({ kind: "failure", output: "dial tcp: lookup nowhere.example: no such host" });
});

test("one address, for those who want no more", async () => {
  const { promise, resolve } = Promise.withResolvers<unknown>();
  lookup("a.example", {}, (...answer) => resolve(answer));
  answerOf(0).resolve(loopback);
  expect(await promise).toEqual([null, "127.0.0.1", 4]);
});
