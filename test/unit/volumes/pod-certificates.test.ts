import { createPrivateKey, createPublicKey } from "node:crypto";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { beforeEach, describe, expect, test } from "vitest";
import type { Informer, StartInformer } from "../../../agent/kube/port.ts";
import type { PodCertificateRequest } from "../../../agent/kube/certificate-types.ts";
import type { Pod, PodCertificateProjection } from "../../../agent/kube/types.ts";
import { exec } from "../../../agent/lib/exec.ts";
import { AgentError } from "../../../agent/lib/errors.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import { createPodKey } from "../../../agent/volumes/pod-certificate-key.ts";
import {
  abandonMs,
  asked,
  type CertificateState,
  decideCertificate,
  type Issued,
  overdueMs,
  refreshJitterMs,
} from "../../../agent/volumes/pod-certificate-state.ts";
import {
  createPodCertificates,
  issueWaitMs,
  type PodCertificates,
  refreshPassMs,
} from "../../../agent/volumes/pod-certificates.ts";
import { MemoryStore } from "../../support/memory-store.ts";
import { FakeClock, makePod, makeTempDir, settle } from "./support.ts";

const never = new AbortController().signal;
const hourMs = 3_600_000;
const iso = (ms: number) => new Date(ms).toISOString();

type Status = NonNullable<PodCertificateRequest["status"]>;
const condition = (type: string, more: { reason?: string; message?: string } = {}): Status => ({
  conditions: [{ type, status: "True", ...more }],
});
const issuedStatus = (nowMs: number): Status => ({
  ...condition("Issued"),
  certificateChain: "CHAIN",
  beginRefreshAt: iso(nowMs + 12 * hourMs),
  notAfter: iso(nowMs + 24 * hourMs),
});
const withStatus = (status: Status | undefined): PodCertificateRequest => ({
  metadata: { name: "req-1", namespace: "shop" },
  spec: {
    signerName: "example.com/s",
    podName: "web",
    podUID: "u",
    serviceAccountName: "default",
    serviceAccountUID: "a",
    nodeName: "n",
    nodeUID: "nu",
    stubPKCS10Request: "",
  },
  ...(status === undefined ? {} : { status }),
});

describe("decideCertificate", () => {
  const at = 1_000 * hourMs;
  const request = { name: "req-1", keyPem: "KEY", abandonAtMs: at + abandonMs };
  const issued: Issued = {
    keyPem: "OLD",
    chainPem: "OLD CHAIN",
    beginRefreshAtMs: at,
    notAfterMs: at + 12 * hourMs,
    refreshAtMs: at + 1000,
  };
  const wait: CertificateState = { kind: "Wait", request };
  const fresh: CertificateState = { kind: "Fresh", issued };
  const waitRefresh: CertificateState = { kind: "WaitRefresh", issued, request };
  const newFresh: CertificateState = {
    kind: "Fresh",
    issued: {
      keyPem: "KEY",
      chainPem: "CHAIN",
      beginRefreshAtMs: at + 12 * hourMs,
      notAfterMs: at + 24 * hourMs,
      refreshAtMs: at + 12 * hourMs + refreshJitterMs / 2,
    },
  };
  const deniedWhy = "PodCertificateRequest req-1 to signer example.com/s was denied: UnsupportedKeyType: no RSA here";
  const denied = condition("Denied", { reason: "UnsupportedKeyType", message: "no RSA here" });
  const failedWhy = "PodCertificateRequest req-1 to signer example.com/s failed: no reason given";
  const told = (kind: "overdue" | "expired", state: typeof fresh | typeof waitRefresh) => ({
    ...state,
    issued: { ...issued, told: kind },
  });

  const cases: {
    name: string;
    state: CertificateState;
    request?: PodCertificateRequest;
    nowMs?: number;
    want: { state: CertificateState; mustAsk?: boolean; event?: string };
  }[] = [
    { name: "nothing yet: ask", state: { kind: "Initial" }, want: { state: { kind: "Initial" }, mustAsk: true } },
    { name: "not answered", state: wait, request: withStatus(undefined), want: { state: wait } },
    { name: "answered, but not issued", state: wait, request: withStatus(condition("Other")), want: { state: wait } },
    { name: "Issued without a chain", state: wait, request: withStatus(condition("Issued")), want: { state: wait } },
    {
      name: "a condition that is False",
      state: wait,
      request: withStatus({ conditions: [{ type: "Denied", status: "False" }] }),
      want: { state: wait },
    },
    { name: "issued", state: wait, request: withStatus(issuedStatus(at)), want: { state: newFresh } },
    {
      name: "denied",
      state: wait,
      request: withStatus(denied),
      want: { state: { kind: "Denied", why: deniedWhy }, event: "Denied" },
    },
    {
      name: "failed",
      state: wait,
      request: withStatus(condition("Failed")),
      want: { state: { kind: "Failed", why: failedWhy }, event: "Failed" },
    },
    { name: "not to be seen for a while", state: wait, nowMs: at + abandonMs - 1, want: { state: wait } },
    {
      name: "not to be seen for long: ask anew",
      state: wait,
      nowMs: at + abandonMs,
      want: { state: { kind: "Initial" }, mustAsk: true },
    },
    {
      name: "unanswered for long, but there",
      state: wait,
      request: withStatus(undefined),
      nowMs: at + 9 * hourMs,
      want: { state: wait },
    },
    { name: "not due", state: fresh, nowMs: at + 999, want: { state: fresh } },
    { name: "due", state: fresh, nowMs: at + 1000, want: { state: fresh, mustAsk: true } },
    { name: "renewed", state: waitRefresh, request: withStatus(issuedStatus(at)), want: { state: newFresh } },
    {
      name: "renewal denied",
      state: waitRefresh,
      request: withStatus(denied),
      want: { state: { kind: "Denied", why: deniedWhy }, event: "Denied" },
    },
    { name: "renewal not answered", state: waitRefresh, request: withStatus(undefined), want: { state: waitRefresh } },
    {
      name: "renewal lost",
      state: waitRefresh,
      nowMs: at + abandonMs,
      want: { state: told("overdue", waitRefresh), mustAsk: true, event: "CertificateOverdueForRefresh" },
    },
    {
      name: "renewal overdue",
      state: waitRefresh,
      request: withStatus(undefined),
      nowMs: at + overdueMs,
      want: { state: told("overdue", waitRefresh), event: "CertificateOverdueForRefresh" },
    },
    {
      name: "overdue, told already",
      state: told("overdue", waitRefresh),
      request: withStatus(undefined),
      nowMs: at + overdueMs + 1,
      want: { state: told("overdue", waitRefresh) },
    },
    {
      name: "not begun because of the jitter is not overdue",
      state: { ...fresh, issued: { ...issued, refreshAtMs: at + refreshJitterMs } },
      nowMs: at + overdueMs + 1,
      want: { state: { ...fresh, issued: { ...issued, refreshAtMs: at + refreshJitterMs } }, mustAsk: true },
    },
    {
      name: "expired",
      state: told("overdue", waitRefresh),
      request: withStatus(undefined),
      nowMs: at + 12 * hourMs,
      want: { state: told("expired", waitRefresh), event: "CertificateExpired" },
    },
    {
      name: "expired, told already",
      state: told("expired", fresh),
      nowMs: at + 13 * hourMs,
      want: { state: told("expired", fresh), mustAsk: true },
    },
    {
      name: "denied for good",
      state: { kind: "Denied", why: "x" },
      nowMs: at + 99 * hourMs,
      want: { state: { kind: "Denied", why: "x" } },
    },
    {
      name: "failed for good",
      state: { kind: "Failed", why: "x" },
      nowMs: at + 99 * hourMs,
      want: { state: { kind: "Failed", why: "x" } },
    },
  ];
  for (const { name, state, request: seen, nowMs = at, want } of cases) {
    test(name, () => {
      const decision = decideCertificate(state, seen, { nowMs, jitter: 0.5 });
      expect({ state: decision.state, mustAsk: decision.mustAsk, event: decision.event?.reason }).toEqual({
        mustAsk: false,
        event: undefined,
        ...want,
      });
    });
  }

  test("issued without times is a failure that says so", () => {
    const status = { ...condition("Issued"), certificateChain: "CHAIN" };
    expect(decideCertificate(wait, withStatus(status), { nowMs: at, jitter: 0 })).toMatchObject({
      state: { kind: "Failed", why: "PodCertificateRequest req-1 was issued without beginRefreshAt or notAfter" },
    });
  });

  test("asking keeps what the pod has", () => {
    expect(asked({ kind: "Initial" }, request)).toEqual(wait);
    expect(asked(fresh, request)).toEqual(waitRefresh);
    expect(asked(waitRefresh, { ...request, name: "req-2" })).toEqual({
      ...waitRefresh,
      request: { ...request, name: "req-2" },
    });
  });
});

describe("createPodKey", () => {
  test.each([
    ["RSA3072", /3072 bit/],
    ["RSA4096", /4096 bit/],
    ["ECDSAP256", /prime256v1|P-256/],
    ["ECDSAP384", /secp384r1|P-384/],
    ["ECDSAP521", /secp521r1|P-521/],
    ["ED25519", /ED25519/i],
  ])("%s: openssl verifies the request, which has no name", async (keyType, what) => {
    const { dir, cleanUp } = await makeTempDir();
    try {
      const { keyPem, stubRequest } = await createPodKey(keyType);
      expect(keyPem).toMatch(/^-----BEGIN PRIVATE KEY-----\n/);
      const file = join(dir, "request.der");
      await writeFile(file, stubRequest);
      const args = ["req", "-inform", "DER", "-in", file, "-noout", "-verify", "-text", "-pubkey"];
      const { stdout, stderr, code } = await exec("openssl", args, { timeoutMs: 10_000 });
      expect({ code, stderr }).toMatchObject({ code: 0, stderr: expect.stringMatching(/verify OK/) as string });
      expect(stdout).toMatch(what);
      expect(stdout).toMatch(/Subject: *\n/);
      const pub = createPublicKey(createPrivateKey(keyPem)).export({ type: "spki", format: "pem" }).toString();
      expect(stdout).toContain(pub);
    } finally {
      await cleanUp();
    }
  });

  test("any other is refused", async () => {
    await expect(createPodKey("DSA")).rejects.toThrow('keyType "DSA" is none of RSA3072, RSA4096, ECDSAP256');
  });
});

describe("createPodCertificates", () => {
  const pod = makePod({ serviceAccountName: "builder" });
  const podUID = pod.metadata.uid ?? "";
  const projection: PodCertificateProjection = {
    signerName: "example.com/s",
    keyType: "ED25519",
    maxExpirationSeconds: 86_400,
    userAnnotations: { "example.com/dns": "web" },
  };
  const source = { pod, volumeName: "v", index: 1, projection };
  let clock: FakeClock;
  let store: MemoryStore<PodCertificateRequest>;
  let created: PodCertificateRequest[];
  let failures: AgentError[];
  let nodeUID: string | undefined;
  let events: string[];
  let woken: string[];
  let certificates: PodCertificates;
  let query: unknown;

  beforeEach(() => {
    clock = new FakeClock();
    store = new MemoryStore<PodCertificateRequest>().markSynced();
    [created, failures, events, woken, nodeUID] = [[], [], [], [], "node-uid"];
    const client = {
      get: async () => {
        await Promise.resolve();
        return { metadata: { name: "builder", uid: "account-uid" } };
      },
      create: async (_resource: unknown, object: PodCertificateRequest) => {
        await Promise.resolve();
        const failure = failures.shift();
        if (failure !== undefined) throw failure;
        created.push(object);
        const made = { ...object, metadata: { ...object.metadata, name: `req-${created.length}` } };
        store.put(made);
        return made;
      },
    } as unknown as Parameters<typeof createPodCertificates>[0]["client"];
    const startInformer = ((_resource: unknown, options: unknown, stop: AbortSignal) => {
      query = options;
      const stopped = new Promise<void>((resolve) => stop.addEventListener("abort", () => resolve()));
      return { store, stopped, lastHeardAtMs: 0 } as unknown as Informer<PodCertificateRequest>;
    }) as unknown as StartInformer;
    certificates = createPodCertificates({
      client,
      startInformer,
      nodeName: "n1",
      nodeUID: () => nodeUID,
      clock,
      log: silentLogger,
      onEvent: (about: Pod, { reason, message }) => events.push(`${about.metadata.name} ${reason} ${message}`),
      random: () => 0,
    });
    certificates.onChange((uid) => woken.push(uid));
  });

  const answer = (nth: number, status: Status) => {
    const request = store.get(`shop/req-${nth}`);
    if (request !== undefined) store.put({ ...request, status });
  };
  /** The keys are made in a thread, whose end no fake clock knows. */
  const untilCreated = async (count: number) => {
    while (created.length < count) await settle();
    await settle();
  };
  const issue = async (nth: number, status = issuedStatus(clock.now())) => {
    await untilCreated(nth);
    answer(nth, status);
  };

  test("asks in the pod's name, once, and gives what was issued", async () => {
    const reads = [certificates.certificate(source, never), certificates.certificate(source, never)];
    await issue(1);
    const [got, same] = await Promise.all(reads);
    expect(got).toEqual(same);
    expect(got).toMatchObject({ chainPem: "CHAIN", refreshAtMs: clock.now() + 12 * hourMs });
    expect(got?.keyPem).toContain("PRIVATE KEY");
    expect(query).toMatchObject({ fieldSelector: "spec.nodeName=n1" });
    expect(created).toEqual([
      {
        metadata: {
          name: "",
          generateName: "req-",
          namespace: "shop",
          ownerReferences: [{ apiVersion: "v1", kind: "Pod", name: "web", uid: podUID }],
        },
        spec: {
          signerName: "example.com/s",
          podName: "web",
          podUID,
          serviceAccountName: "builder",
          serviceAccountUID: "account-uid",
          nodeName: "n1",
          nodeUID: "node-uid",
          maxExpirationSeconds: 86_400,
          unverifiedUserAnnotations: { "example.com/dns": "web" },
          stubPKCS10Request: expect.stringMatching(/^[A-Za-z0-9+/]+=*$/) as string,
        },
      },
    ]);
    expect([...certificates.states()]).toEqual([{ signerName: "example.com/s", state: "Fresh" }]);
    expect(JSON.stringify(created)).not.toContain("PRIVATE");
  });

  test("a slow signer makes the volume wait, and wakes the pod when it has answered", async () => {
    const read = certificates.certificate(source, never);
    read.catch(() => {});
    await untilCreated(1);
    await clock.advance(issueWaitMs);
    await expect(read).rejects.toMatchObject({
      code: "Unavailable",
      message: "waiting for signer example.com/s to answer PodCertificateRequest req-1",
    });
    expect(woken).toEqual([]);
    answer(1, issuedStatus(clock.now()));
    expect(woken).toEqual([podUID]);
    expect((await certificates.certificate(source, never)).chainPem).toBe("CHAIN");
    expect(created).toHaveLength(1);
    expect(clock.pendingTimers).toBe(0);
  });

  test("a refusal is for good, with an event", async () => {
    const read = certificates.certificate(source, never);
    read.catch(() => {});
    await issue(1, condition("Denied", { reason: "NotYou" }));
    await expect(read).rejects.toMatchObject({
      code: "Forbidden",
      message: expect.stringContaining("was denied: NotYou") as string,
    });
    await expect(certificates.certificate(source, never)).rejects.toThrow("has to be replaced");
    expect(created).toHaveLength(1);
    expect(events).toEqual(["web Denied PodCertificateRequest req-1 to signer example.com/s was denied: NotYou"]);
  });

  test("renews in time with a new key, and keeps the old certificate until the new one is there", async () => {
    const first = certificates.certificate(source, never);
    await issue(1);
    const old = await first;
    await clock.advance(12 * hourMs);
    const during = await certificates.certificate(source, never);
    expect(during).toEqual({ ...old, refreshAtMs: clock.now() + refreshPassMs });
    await untilCreated(2);
    expect((await certificates.certificate(source, never)).keyPem).toBe(old.keyPem);
    answer(2, { ...issuedStatus(clock.now()), certificateChain: "NEW" });
    expect(woken.at(-1)).toBe(podUID);
    const renewed = await certificates.certificate(source, never);
    expect(renewed.chainPem).toBe("NEW");
    expect(renewed.keyPem).not.toBe(old.keyPem);
    expect(created).toHaveLength(2);
  });

  test("a renewal that cannot be asked for keeps the old certificate and is tried again", async () => {
    const first = certificates.certificate(source, never);
    await issue(1);
    await first;
    await clock.advance(12 * hourMs);
    failures = [new AgentError("Unavailable", "away")];
    expect((await certificates.certificate(source, never)).chainPem).toBe("CHAIN");
    while (failures.length > 0) await settle();
    await settle();
    await certificates.certificate(source, never);
    await untilCreated(2);
  });

  test.each([
    {
      name: "the API server",
      prepare: () => (failures = [new AgentError("Forbidden", "not your pod")]),
      why: "not your pod",
    },
    { name: "the node's absence", prepare: () => (nodeUID = undefined), why: "not registered yet" },
  ])("what $name says is the error, and the next set-up tries again", async ({ prepare, why }) => {
    prepare();
    await expect(certificates.certificate(source, never)).rejects.toThrow(why);
    nodeUID = "node-uid";
    const read = certificates.certificate(source, never);
    await issue(1);
    expect((await read).chainPem).toBe("CHAIN");
  });

  test("forgets with the pod", async () => {
    const read = certificates.certificate(source, never);
    await issue(1);
    await read;
    certificates.forget(podUID);
    expect([...certificates.states()]).toEqual([]);
    await certificates.close();
  });
});
