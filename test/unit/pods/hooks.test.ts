import { generateKeyPairSync } from "node:crypto";
import { describe, expect, test } from "vitest";
import { buildCertificate } from "../../../agent/kube/certificates/x509.ts";
import type { LifecycleHandler } from "../../../agent/kube/types.ts";
import { AgentError } from "../../../agent/lib/errors.ts";
import { MetricsRegistry } from "../../../agent/lib/metrics.ts";
import { type HookDeps, runHook } from "../../../agent/pods/hooks.ts";
import { createPodMetrics } from "../../../agent/pods/metrics.ts";
import { FakeClock, settle } from "../kube/fake-clock.ts";
import { metricsText } from "../lib/metrics-support.ts";
import { closedPort, startHTTP, startHTTPS, startTCP, startText } from "../probes/servers.ts";
import { podOf } from "./support.ts";

/** Runs a hook of container `app` at 127.0.0.1. */
function setUp(execSync: HookDeps["runtime"]["execSync"] = async () => await Promise.reject(new Error("not asked"))) {
  const clock = new FakeClock();
  const stop = new AbortController();
  const fallbacks: string[] = [];
  const registry = new MetricsRegistry();
  const deps: HookDeps = {
    runtime: { execSync },
    clock,
    metrics: createPodMetrics(registry, clock),
    onHTTPFallback: (_pod, container, message) => fallbacks.push(`${container.name} ${message}`),
  };
  const run = async (handler: LifecycleHandler, podIP = "127.0.0.1") => {
    const container = { name: "app", image: "image:1", ports: [{ name: "web", containerPort: 8080 }] };
    await runHook(handler, { pod: podOf(), container, containerID: "app-0", podIP }, deps, stop.signal);
  };
  return { clock, stop, fallbacks, run, shown: () => metricsText(registry) };
}

const result = (exitCode: number, stderr = "") => ({
  exitCode,
  stdout: Buffer.from("out,"),
  stderr: Buffer.from(stderr),
});

describe("an exec hook", () => {
  test("runs without a timeout, its command as it is written", async () => {
    const calls: unknown[] = [];
    const { run } = setUp(async (...call) => {
      calls.push(call);
      return result(0);
    });
    await run({ exec: { command: ["echo", "$(A)"] } });
    expect(calls).toEqual([["app-0", ["echo", "$(A)"], 0]]);
  });

  test("fails with another exit code than 0, and with the runtime's errors", async () => {
    await expect(setUp(async () => result(3, "err")).run({ exec: { command: ["a", "b"] } })).rejects.toThrow(
      "command 'a b' exited with 3: out,err",
    );
    const gone = async () => await Promise.reject(new AgentError("NotFound", "no such container"));
    await expect(setUp(gone).run({ exec: { command: ["a"] } })).rejects.toThrow("no such container");
  });

  test("that hangs is waited for until somebody gives up, and how it ends later bothers nobody", async () => {
    const { promise, reject } = Promise.withResolvers<never>();
    const { run, stop } = setUp(async () => await promise);
    const running = run({ exec: { command: ["a"] } });
    running.catch(() => {});
    await settle();
    stop.abort();
    await expect(running).rejects.toMatchObject({ name: "AbortError" });
    reject(new Error("late"));
    await settle();
  });
});

describe("an HTTP hook", () => {
  test("says who asks, and takes any answer", async () => {
    const { run } = setUp();
    const agents: unknown[] = [];
    await using server = await startHTTP((request, response) => {
      agents.push(request.headers["user-agent"]);
      response.writeHead(500).end();
    });
    await run({ httpGet: { port: server.port } });
    await run({ httpGet: { port: server.port, httpHeaders: [{ name: "user-agent", value: "me" }] } });
    expect(agents).toEqual(["kube-lifecycle/1.36", "me"]);
  });

  test("waits for the end of the answer, however it ends", async () => {
    const { run } = setUp();
    let finish = () => {};
    await using server = await startHTTP((_request, response) => {
      response.writeHead(200).write("draining");
      finish = () => response.destroy();
    });
    let isDone = false;
    const running = run({ httpGet: { port: server.port } }).then(() => {
      isDone = true;
    });
    while (server.connections === 0) await settle();
    for (let i = 0; i < 20; i += 1) await settle();
    expect(isDone).toBe(false);
    finish();
    await running;
  });

  test("fails if nobody answers, and ends when it is given up", async () => {
    const { run, stop } = setUp();
    await expect(run({ httpGet: { port: await closedPort() } })).rejects.toThrow("connection refused");
    await expect(run({ httpGet: { port: "nope" } })).rejects.toThrow(`couldn't find port: "nope"`);
    await expect(run({ httpGet: { port: 80 } }, "")).rejects.toThrow("the pod has no IP address yet");
    await using server = await startTCP();
    const running = run({ httpGet: { port: server.port } });
    running.catch(() => {});
    while (server.connections === 0) await settle();
    stop.abort();
    await expect(running).rejects.toThrow();
    await server.idle();
  });

  test("over HTTPS to a plain server is sent again without its credentials, and said", async () => {
    const { run, fallbacks, shown } = setUp();
    const seen: unknown[] = [];
    await using server = await startHTTP((request, response) => {
      seen.push([request.url, request.headers["x-a"], request.headers.authorization]);
      response.end();
    });
    const httpHeaders = [
      { name: "X-A", value: "1" },
      { name: "Authorization", value: "Bearer secret" },
    ];
    await run({ httpGet: { port: server.port, scheme: "HTTPS", path: "/bye?x", httpHeaders } });
    expect(seen).toEqual([["/bye?x", "1", undefined]]);
    expect(await shown()).toContain("kubelet_lifecycle_handler_http_fallbacks_total 1\n");
    expect(fallbacks).toEqual([
      `app request to HTTPS lifecycle hook got HTTP response, retry with HTTP succeeded: Get "https://127.0.0.1:${server.port}/bye?x": http: server gave HTTP response to HTTPS client`,
    ]);
  });

  test("over HTTPS to a plain server that does not take it without TLS either fails, and no fallback is told", async () => {
    const { run, fallbacks, shown } = setUp();
    let requests = 0;
    await using server = await startTCP((socket) => {
      requests += 1;
      if (requests === 1) socket.end("HTTP/1.1 400 Bad Request\r\n\r\n");
      else socket.destroy();
    });
    await expect(run({ httpGet: { port: server.port, scheme: "HTTPS" } })).rejects.toThrow();
    expect([requests, fallbacks]).toEqual([2, []]);
    expect(await shown()).toContain("kubelet_lifecycle_handler_http_fallbacks_total 0\n");
  });

  test("over HTTPS is not sent in the clear to a server that speaks TLS and refuses", async () => {
    const { run, fallbacks } = setUp();
    await using server = await startText(Buffer.from([0x15, 3, 3, 0, 2, 2, 40]));
    await expect(run({ httpGet: { port: server.port, scheme: "HTTPS" } })).rejects.toThrow("handshake failure");
    expect([server.connections, fallbacks]).toEqual([1, []]);
  });

  test("over HTTPS does not verify", async () => {
    const { privateKey, publicKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
    const cert = buildCertificate({
      template: { commonName: "elsewhere", organizations: [], dnsNames: [], ips: [] },
      publicKey,
      issuer: { name: { commonName: "nobody", organizations: [] }, key: privateKey },
      isAuthority: false,
      notBeforeMs: Date.UTC(2020, 0, 1),
      notAfterMs: Date.UTC(2020, 0, 2),
    });
    const key = privateKey.export({ type: "pkcs8", format: "pem" }).toString();
    await using server = await startHTTPS({ key, cert }, (_request, response) => response.end());
    const { run, fallbacks } = setUp();
    await run({ httpGet: { port: server.port, scheme: "HTTPS" } });
    expect([server.connections, fallbacks]).toEqual([1, []]);
  });
});

describe("a sleep hook", () => {
  test("lasts as long as it says", async () => {
    const { run, clock } = setUp();
    let isDone = false;
    const running = run({ sleep: { seconds: 3 } }).then(() => {
      isDone = true;
    });
    await clock.advance(2_999);
    expect(isDone).toBe(false);
    await clock.advance(1);
    await running;
  });

  test("of no time is over at once, and any ends when it is given up", async () => {
    const { run, clock, stop, shown } = setUp();
    const none = run({ sleep: { seconds: 0 } });
    await clock.advance(0);
    await none;
    expect(await shown()).toContain("kubelet_sleep_action_terminated_early_total 0\n");
    const running = run({ sleep: { seconds: 60 } });
    stop.abort();
    await expect(running).rejects.toMatchObject({ name: "AbortError" });
    expect(clock.waiting).toBe(0);
    expect(await shown()).toContain("kubelet_sleep_action_terminated_early_total 1\n");
  });
});

test.each([{ handler: { tcpSocket: { port: 80 } } }, { handler: {} }])(
  "$handler is no handler",
  async ({ handler }) => {
    await expect(setUp().run(handler)).rejects.toThrow("invalid handler: it has no exec, httpGet or sleep");
  },
);

test("a hook that is given up before it began does nothing", async () => {
  const { run, stop } = setUp();
  stop.abort();
  await expect(run({ exec: { command: ["a"] } })).rejects.toMatchObject({ name: "AbortError" });
});
