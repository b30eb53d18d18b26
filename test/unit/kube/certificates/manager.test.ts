import { mkdir, readdir, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { ApiError } from "../../../../agent/kube/api-error.ts";
import { clientSigner, clientTemplate } from "../../../../agent/kube/certificates/client.ts";
import { CertificateManager, type CertificateManagerOptions } from "../../../../agent/kube/certificates/manager.ts";
import { clientCertificateMetrics, servingCertificateMetrics } from "../../../../agent/kube/certificates/metrics.ts";
import { PemStore } from "../../../../agent/kube/certificates/store.ts";
import type { CertificateTemplate } from "../../../../agent/kube/certificates/x509.ts";
import { AgentError } from "../../../../agent/lib/errors.ts";
import { createLogger } from "../../../../agent/lib/log.ts";
import { MetricsRegistry } from "../../../../agent/lib/metrics.ts";
import { renderMetrics } from "../../../../agent/lib/metrics-text.ts";
import { FakeClock } from "../fake-clock.ts";
import { until } from "../support.ts";
import { FakeSigner, makePair, refuse, signFor, temporaryDir } from "./support.ts";

const dayMs = 24 * 3_600_000;
const minuteMs = 60_000;

let clock: FakeClock;
let signer: FakeSigner;
let dir: Awaited<ReturnType<typeof temporaryDir>>;
let log: string[];
let stop: AbortController;
let running: Promise<void> | undefined;

beforeEach(async () => {
  clock = new FakeClock();
  signer = new FakeSigner();
  dir = await temporaryDir();
  log = [];
  stop = new AbortController();
  running = undefined;
});
afterEach(async () => {
  stop.abort();
  await running?.catch(() => {});
  await dir[Symbol.asyncDispose]();
  if (signer.open > 0 || clock.waiting > 0) throw new Error("the manager has left something behind");
});

const certDir = () => join(dir.path, "pki");

function manage(changes: Partial<CertificateManagerOptions> = {}): CertificateManager {
  const logger = createLogger({ level: "info", stream: { write: (line: string) => void log.push(line) } });
  return new CertificateManager(
    {
      ...clientSigner,
      purpose: "client",
      store: new PemStore({ dir: certDir(), prefix: "kubelet-client", log: logger }),
      template: () => clientTemplate("n1"),
      openApi: signer.openApi,
      isEssential: true,
      ...changes,
    },
    { clock, log: logger, random: () => 0.5 },
  );
}

async function start(manager: CertificateManager): Promise<void> {
  await manager.load();
  running = manager.run(stop.signal);
  running.catch(() => {});
}

/**
 * Moves time on in steps until `condition` holds. Time stands still while the manager makes a key or writes a file, which
 * take real time: it then waits for less than two things on the clock.
 */
async function advanceUntil(condition: () => boolean, stepMs = 1_000): Promise<void> {
  const endMs = performance.now() + 4_000;
  while (!condition()) {
    if (performance.now() > endMs) throw new Error(`still not so: ${condition.toString()}`);
    if (clock.waiting === 1) await new Promise((resolve) => void setTimeout(resolve, 1));
    else await clock.advance(stepMs);
  }
}

const requests = (n: number) => () => signer.requests.length === n;

describe("the first certificate", () => {
  test("is requested at once, as the reference asks for it, and told to subscribers when it is there", async () => {
    signer.answer = signFor(clock, dayMs);
    const manager = manage();
    let told = 0;
    manager.subscribe(() => {
      told += 1;
    });
    await start(manager);
    expect(manager.current()).toBeUndefined();
    await until(() => manager.current() !== undefined);
    expect(told).toBe(1);
    expect(signer.requests).toHaveLength(1);
    expect(signer.requests[0]).toMatchObject({
      metadata: { name: "csr-0" },
      spec: {
        signerName: "kubernetes.io/kube-apiserver-client-kubelet",
        usages: ["digital signature", "client auth"],
      },
    });
    expect(signer.requests[0]?.spec).not.toHaveProperty("expirationSeconds");
    await until(() => log.some((line) => line.includes("a certificate was issued")));
    await settled(manager);
    expect(
      await manage()
        .load()
        .then(() => readdir(certDir())),
    ).toContain("kubelet-client-current.pem");
  });

  test("is waited for until somebody approves it", async () => {
    const manager = manage({ isEssential: false });
    await start(manager);
    await until(requests(1));
    await clock.advance(14 * minuteMs);
    expect(signer.requests).toHaveLength(1);
    signer.decide(0, signFor(clock, dayMs));
    await until(() => manager.current() !== undefined);
  });

  test("that nobody approves in 15 minutes is asked for again", async () => {
    await start(manage({ isEssential: false }));
    await until(requests(1));
    await clock.advance(15 * minuteMs);
    await advanceUntil(requests(2));
    expect(log.join("")).toContain("csr-0 was neither signed nor denied within 15 min: approve it sooner");
  });

  test.each([
    { name: "denied", answer: refuse("Denied", "go away"), want: "csr-0 was denied: NoReason: go away" },
    { name: "failed", answer: refuse("Failed", "bad key"), want: "csr-0 could not be signed: NoReason: bad key" },
    {
      name: "answered with garbage",
      answer: () => ({ conditions: [{ type: "Approved", status: "True" }], certificate: "bm9uc2Vuc2U=" }),
      want: "the answer to certificate signing request csr-0 is unusable: there is no PEM certificate in it",
    },
    {
      name: "answered with an expired certificate",
      answer: signFor({ now: () => Date.UTC(2020, 0, 1) }, 1_000),
      want: "the certificate of signing request csr-0 expired already",
    },
  ])("that is $name is asked for again, with a rest in between and one clear line", async ({ answer, want }) => {
    signer.answer = answer;
    const manager = manage({ isEssential: false });
    await start(manager);
    await until(() => log.some((line) => line.includes(want)));
    expect(signer.requests).toHaveLength(1);
    expect(manager.current()).toBeUndefined();
    signer.answer = signFor(clock, dayMs);
    await advanceUntil(() => manager.current() !== undefined);
    expect(signer.requests).toHaveLength(2);
    expect(signer.requests[1]?.spec.request).not.toBe(signer.requests[0]?.spec.request);
  });

  test("made for another's key is no use", async () => {
    const { cert } = await makePair();
    signer.answer = () => ({
      conditions: [{ type: "Approved", status: "True" }],
      certificate: cert.toString("base64"),
    });
    await start(manage({ isEssential: false }));
    await until(() => log.some((line) => line.includes("made for another private key")));
  });

  test("whose request somebody deletes is asked for again", async () => {
    await start(manage({ isEssential: false }));
    await until(requests(1));
    signer.store.remove("csr-0");
    await until(() => log.some((line) => line.includes("csr-0 was deleted")));
    await advanceUntil(requests(2));
  });

  test("is asked for every 32 s while the API server is away, and that is said once", async () => {
    signer.failure = new AgentError("Unavailable", "https://10.0.0.1: connect: refused");
    await start(manage());
    await advanceUntil(() => log.some((line) => line.includes("refused")));
    for (let i = 0; i < 30; i += 1) await clock.advance(minuteMs); // also no reason to end
    expect(log.filter((line) => line.includes("connect: refused"))).toHaveLength(1);
    expect(log.filter((line) => line.includes("waiting for the API server to sign"))).toHaveLength(1);
  });
});

async function settled(manager: CertificateManager): Promise<void> {
  await until(() => manager.current() !== undefined);
  // The save follows the use.
  await until(() => clock.waiting === 2);
}

describe("renewal", () => {
  test("happens at 80 % of the life with this jitter, and not before", async () => {
    signer.answer = signFor(clock, 100 * minuteMs);
    const manager = manage();
    await start(manager);
    await settled(manager);
    const first = manager.current();
    await clock.advance(79 * minuteMs);
    expect(signer.requests).toHaveLength(1);
    await clock.advance(2 * minuteMs);
    await until(() => manager.current() !== first);
    expect(signer.requests).toHaveLength(2);
  });

  test("of certificates that live for 20 s goes on and on, never faster than they age", async () => {
    signer.answer = signFor(clock, 20_000);
    const manager = manage();
    await start(manager);
    for (let n = 1; n <= 4; n += 1) {
      await advanceUntil(requests(n));
      await settled(manager);
      expect(manager.current()).toBeDefined();
    }
    expect(clock.now() - new FakeClock().now()).toBeGreaterThan(3 * 14_000);
  });

  test("is done at once when the wall clock was set past the time, although timers did not notice", async () => {
    const manager = manage({ isEssential: false });
    signer.answer = signFor(clock, dayMs);
    await start(manager);
    await settled(manager);
    const monotonic = clock.monotonic();
    const skewMs = 20 * 3_600_000;
    const { now } = clock;
    clock.now = () => now() + skewMs;
    clock.monotonic = () => monotonic;
    await advanceUntil(requests(2), 10_000);
    expect(log.filter((line) => line.includes("requesting a certificate")).at(-1)).toContain("it will expire");
    clock.now = now;
  });

  test("is not needed when the wall clock was set back", async () => {
    signer.answer = signFor(clock, dayMs);
    const manager = manage();
    await start(manager);
    await settled(manager);
    const { now } = clock;
    clock.now = () => now() - 365 * dayMs;
    await clock.advance(10 * minuteMs);
    expect(manager.current()).toBeDefined();
    expect(signer.requests).toHaveLength(1);
    clock.now = now;
  });

  test("that fails keeps the old certificate in use", async () => {
    signer.answer = (asked, nth) =>
      nth === 0 ? signFor(clock, dayMs)(asked, nth) : refuse("Denied", "no")(asked, nth);
    const manager = manage();
    await start(manager);
    await settled(manager);
    await clock.advance(20 * 3_600_000);
    await until(() => signer.requests.length > 1);
    expect(manager.current()).toBeDefined();
  });
});

describe("a pair to begin with", () => {
  test("of the kubeconfig is saved, used, and replaced at once", async () => {
    const manager = manage();
    await manager.load(await makePair());
    expect(manager.current()).toBeDefined();
    expect(await readdir(certDir())).toContain("kubelet-client-current.pem");
    running = manager.run(stop.signal);
    await until(requests(1));
    expect(log.join("")).toContain("it was given for the start only");
  });

  test("of the store counts more, and is kept while it is good", async () => {
    await manage().load(await makePair());
    const stored = manage();
    await stored.load(await makePair({ commonName: "system:node:other" }));
    expect(stored.current()?.leaf.subject).toContain("system:node:n1");
  });

  test("that names another node is replaced at once", async () => {
    const manager = manage({ template: () => clientTemplate("n2") });
    await manager.load(await makePair());
    running = manager.run(stop.signal);
    await until(requests(1));
    expect(log.join("")).toContain("its common name is system:node:n1");
  });
});

describe("what cannot be saved", () => {
  test("is used nevertheless, not asked for again, and saved when there is room", async () => {
    await writeFile(certDir(), "a file where the directory should be");
    signer.answer = signFor(clock, dayMs);
    const manager = manage();
    await start(manager);
    await until(() => log.some((line) => line.includes("cannot save the certificate: ")));
    expect(manager.current()).toBeDefined();
    for (let i = 0; i < 10; i += 1) await clock.advance(minuteMs);
    expect(signer.requests).toHaveLength(1);
    await rm(certDir());
    await mkdir(certDir());
    for (let i = 0; i < 3 && !(await readdir(certDir())).includes("kubelet-client-current.pem"); i += 1) {
      await clock.advance(32_000);
      await settled(manager);
    }
    expect(await readdir(certDir())).toContain("kubelet-client-current.pem");
    expect(signer.requests).toHaveLength(1);
    await settled(manager);
  });
});

describe("an agent without a certificate", () => {
  const away = new AgentError("Unavailable", "connection refused");
  const refusal = (status: number) => new ApiError("Unauthorized", "no", { status });

  test.each([401, 403, 404])("ends after 5 minutes when the server answers %i", async (status) => {
    signer.failure = refusal(status);
    await start(manage());
    const ended = expect(running).rejects.toThrow(/no client certificate for 5 min, although the API server answers/);
    await advanceUntil(() => clock.now() - new FakeClock().now() > 6 * minuteMs, 5_000);
    await ended;
    expect(clock.now() - new FakeClock().now()).toBeGreaterThan(5 * minuteMs);
  });

  test("waits for a server that is broken or away", async () => {
    const manager = manage();
    for (const failure of [away, refusal(500), refusal(503)]) {
      signer.failure = failure;
      if (running === undefined) await start(manager);
      for (let i = 0; i < 12; i += 1) await clock.advance(minuteMs);
    }
    expect(await Promise.race([running, Promise.resolve("runs")])).toBe("runs");
  });

  test("ends at once when it expires while the server answers, and tells subscribers", async () => {
    let told = 0;
    signer.answer = (asked, nth) =>
      nth === 0 ? signFor(clock, dayMs)(asked, nth) : refuse("Denied", "no")(asked, nth);
    const manager = manage();
    manager.subscribe(() => {
      told += 1;
    });
    await start(manager);
    await settled(manager);
    const ended = expect(running).rejects.toThrow(
      /the client certificate has expired, although the API server answers/,
    );
    await advanceUntil(() => manager.current() === undefined, 10 * minuteMs);
    await ended;
    expect(told).toBe(2);
  });

  test("lives on when it expires while the server is away, and gets a new one when it is back", async () => {
    signer.answer = signFor(clock, dayMs);
    const manager = manage();
    await start(manager);
    await settled(manager);
    signer.failure = away;
    await advanceUntil(() => manager.current() === undefined, 10 * minuteMs);
    for (let i = 0; i < 10; i += 1) await clock.advance(minuteMs);
    signer.failure = undefined;
    await advanceUntil(() => manager.current() !== undefined, 5_000);
    expect(log.at(-1)).toContain("a certificate was issued");
  });
});

describe("a changed template", () => {
  test("gives up the request under way, and asks for what is wanted now", async () => {
    let names: readonly string[] = ["10.0.0.1"];
    let changed = () => {};
    const manager = manage({
      isEssential: false,
      template: () => ({ ...clientTemplate("n1"), ips: names }),
      subscribeTemplate: (listener) => {
        changed = listener;
        return () => {};
      },
    });
    await start(manager);
    await until(requests(1));
    changed(); // nothing is different
    names = ["10.0.0.2"];
    changed();
    await until(requests(2));
    expect([signer.names(0), signer.names(1)]).toEqual([["10.0.0.1"], ["10.0.0.2"]]);
    signer.decide(0, signFor(clock, dayMs));
    signer.decide(1, signFor(clock, dayMs));
    await until(() => manager.current() !== undefined);
    expect(manager.current()?.leaf.checkIP("10.0.0.2")).toBe("10.0.0.2");
    expect(signer.requests).toHaveLength(2);
  });

  test("is waited for while it is unknown", async () => {
    const wanted: CertificateTemplate[] = [];
    let changed = () => {};
    const manager = manage({
      isEssential: false,
      template: () => wanted[0],
      subscribeTemplate: (listener) => {
        changed = listener;
        return () => {};
      },
    });
    await start(manager);
    for (let i = 0; i < 10; i += 1) await clock.advance(minuteMs);
    expect(signer.requests).toHaveLength(0);
    wanted.push(clientTemplate("n1"));
    changed();
    await until(requests(1));
  });

  test("that the signer does not honour is used, and asked for again with growing rests", async () => {
    signer.answer = signFor(clock, dayMs, { organizations: [] });
    const manager = manage();
    await start(manager);
    await until(() => log.some((line) => line.includes("the signer gave another certificate than was asked for")));
    expect(manager.current()).toBeDefined();
    await advanceUntil(requests(3));
    expect(clock.now() - new FakeClock().now()).toBeGreaterThanOrEqual(6_000);
  });
});

test("metrics: time left, failures, and the age of replaced serving certificates", async () => {
  const registry = new MetricsRegistry();
  const managers: CertificateManager[] = [];
  const source = () => managers[0] ?? { current: () => undefined, subscribe: () => () => {} };
  const client = clientCertificateMetrics(registry, source, clock);
  const serving = servingCertificateMetrics(
    registry,
    () => ({ current: () => undefined, subscribe: () => () => {} }),
    clock,
  );
  const text = async () => [...renderMetrics(await registry.families())].join("");
  expect(await text()).toContain("kubelet_certificate_manager_client_ttl_seconds +Inf\n");
  expect(await text()).toContain("kubelet_certificate_manager_server_ttl_seconds +Inf\n");
  signer.answer = (asked, nth) => (nth === 0 ? refuse("Denied", "no")(asked, nth) : signFor(clock, dayMs)(asked, nth));
  const manager = manage({ observer: client });
  managers.push(manager);
  await start(manager);
  await advanceUntil(() => manager.current() !== undefined);
  expect(await text()).toMatch(/^kubelet_certificate_manager_client_ttl_seconds 86[34]\d\d/m);
  expect(await text()).toContain("kubelet_certificate_manager_client_expiration_renew_errors 1\n");
  serving.rotated(7_200);
  serving.renewFailed();
  expect(await text()).toContain('kubelet_certificate_manager_server_rotation_seconds_bucket{le="14400"} 1\n');
  expect(await text()).toContain('kubelet_certificate_manager_server_rotation_seconds_bucket{le="3600"} 0\n');
  expect(await text()).toContain("kubelet_server_expiration_renew_errors 1\n");
});
