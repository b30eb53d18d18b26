import { X509Certificate } from "node:crypto";
import { beforeEach, describe, expect, test } from "vitest";
import type { Informer, StartInformer } from "../../../agent/kube/port.ts";
import type { ClusterTrustBundle } from "../../../agent/kube/certificate-types.ts";
import type { LabelSelector } from "../../../agent/kube/types.ts";
import { matchesSelector } from "../../../agent/kube/label-selector.ts";
import { AgentError } from "../../../agent/lib/errors.ts";
import { selectorBytesMax, trustAnchors } from "../../../agent/volumes/trust-anchors.ts";
import { createTrustBundles, syncWaitMs, type TrustBundles } from "../../../agent/volumes/trust-bundles.ts";
import { CertificateAuthority } from "../../support/apiserver/pki.ts";
import { MemoryStore } from "../../support/memory-store.ts";
import { FakeClock, settle } from "./support.ts";

const never = new AbortController().signal;
const [one = "", two = "", three = ""] = ["one", "two", "three"].map((name) => {
  return CertificateAuthority.create(name).certificate;
});

function bundle(
  name: string,
  trustBundle: string,
  spec: { signerName?: string; labels?: Record<string, string> } = {},
) {
  const { signerName, labels } = spec;
  const object: ClusterTrustBundle = {
    metadata: { name, ...(labels === undefined ? {} : { labels }) },
    spec: { trustBundle, ...(signerName === undefined ? {} : { signerName }) },
  };
  return object;
}

const namesIn = (pem: string | undefined) =>
  (pem ?? "")
    .split(/(?<=-----END CERTIFICATE-----\n)/)
    .filter((block) => block !== "")
    .map((block) => /CN=(\w+)/.exec(new X509Certificate(block).subject)?.[1] ?? "")
    .sort((a, b) => (a < b ? -1 : 1));

describe("matchesSelector", () => {
  const labels = { app: "web", tier: "front" };
  test.each([
    [undefined, false],
    [null, false],
    [{}, true],
    [{ matchLabels: { app: "web" } }, true],
    [{ matchLabels: { app: "web", tier: "back" } }, false],
    [{ matchLabels: { toString: "x" } }, false],
    [{ matchExpressions: [{ key: "app", operator: "In", values: ["web", "db"] }] }, true],
    [{ matchExpressions: [{ key: "absent", operator: "In", values: ["web"] }] }, false],
    [{ matchExpressions: [{ key: "app", operator: "NotIn", values: ["web"] }] }, false],
    [{ matchExpressions: [{ key: "absent", operator: "NotIn", values: ["web"] }] }, true],
    [{ matchExpressions: [{ key: "app", operator: "Exists" }] }, true],
    [{ matchExpressions: [{ key: "constructor", operator: "Exists" }] }, false],
    [{ matchExpressions: [{ key: "app", operator: "DoesNotExist" }] }, false],
    [{ matchExpressions: [{ key: "absent", operator: "DoesNotExist" }] }, true],
  ] as [LabelSelector | null | undefined, boolean][])("%o → %s", (selector, want) =>
    expect(matchesSelector(labels, selector)).toBe(want),
  );
  test("an unknown operator is refused", () => {
    expect(() => matchesSelector({}, { matchExpressions: [{ key: "a", operator: "Like" }] })).toThrow(
      'operator "Like"',
    );
  });
});

describe("trustAnchors", () => {
  const signerName = "example.com/signer";
  const bundles = [
    bundle("plain", one),
    bundle("a", one + two, { signerName, labels: { live: "yes" } }),
    bundle("b", two + three, { signerName }),
    bundle("c", three, { signerName: "example.com/other", labels: { live: "yes" } }),
  ];
  test.each([
    { name: "by name", source: { name: "plain" }, want: ["one"] },
    { name: "by name, of any signer", source: { name: "a" }, want: ["one", "two"] },
    {
      name: "all of a signer, each certificate once",
      source: { signerName, labelSelector: {} },
      want: ["one", "three", "two"],
    },
    { name: "by label", source: { signerName, labelSelector: { matchLabels: { live: "yes" } } }, want: ["one", "two"] },
  ])("$name", ({ source, want }) => {
    expect(namesIn(trustAnchors(bundles, { ...source, path: "ca.pem" }))).toEqual(want);
  });

  test.each([
    { name: "no such name", source: { name: "nobody" } },
    { name: "no selector selects nothing", source: { signerName } },
    { name: "no such signer", source: { signerName: "example.com/nobody", labelSelector: {} } },
  ])("$name", ({ source }) => expect(trustAnchors(bundles, { ...source, path: "p" })).toBeUndefined());

  test("only certificates come through, without headers and what stands between", () => {
    const untidy = one.replace("-----\n", "-----\r\nProc-Type: 4\r\nX-Info: a: b\r\n\r\n");
    const text = `hello\n${untidy}-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\nbetween\n${two}`;
    const found = trustAnchors([bundle("x", text)], { name: "x", path: "p" }) ?? "";
    expect(namesIn(found)).toEqual(["one", "two"]);
    expect(found).not.toMatch(/hello|between|PRIVATE|Proc-Type/);
  });

  test("the order stays, whatever the order of the bundles", () => {
    const source = { signerName, labelSelector: {}, path: "p" };
    expect(trustAnchors(bundles.toReversed(), source)).toBe(trustAnchors(bundles, source));
  });

  test.each([
    { source: {}, why: "name or signerName is required" },
    {
      source: { signerName, labelSelector: { matchLabels: { a: "x".repeat(selectorBytesMax) } } },
      why: `labelSelector is longer than ${selectorBytesMax} bytes`,
    },
  ])("$why", ({ source, why }) => expect(() => trustAnchors(bundles, { ...source, path: "p" })).toThrow(why));
});

describe("createTrustBundles", () => {
  let clock: FakeClock;
  let store: MemoryStore<ClusterTrustBundle>;
  let started: string[];
  let served: Record<string, string[]>;
  let bundles: TrustBundles;

  beforeEach(() => {
    clock = new FakeClock();
    store = new MemoryStore<ClusterTrustBundle>();
    started = [];
    served = { v1beta1: ["clustertrustbundles"], v1alpha1: ["clustertrustbundles"] };
    const client = {
      request: async (_method: string, path: string) => {
        await Promise.resolve();
        const names = served[path.split("/").at(-1) ?? ""];
        if (names === undefined) throw new AgentError("NotFound", "no such version");
        return { resources: names.map((name) => ({ name })) };
      },
    } as unknown as Parameters<typeof createTrustBundles>[0]["client"];
    const startInformer = ((resource: { version: string }, _query: unknown, stop: AbortSignal) => {
      started.push(resource.version);
      const stopped = new Promise<void>((resolve) => stop.addEventListener("abort", () => resolve()));
      return { store, stopped, lastHeardAtMs: 0 } as unknown as Informer<ClusterTrustBundle>;
    }) as unknown as StartInformer;
    bundles = createTrustBundles({ client, startInformer, clock });
  });

  test("watches once somebody reads, the newest version that is served", async () => {
    store.put(bundle("a", one)).markSynced();
    expect(started).toEqual([]);
    const reads = [1, 2].map(() => bundles.anchors({ name: "a", path: "p" }, never));
    for (const pem of await Promise.all(reads)) expect(namesIn(pem)).toEqual(["one"]);
    expect(started).toEqual(["v1beta1"]);
    await bundles.close();
  });

  test.each([
    [{ v1alpha1: ["clustertrustbundles"] }, ["v1alpha1"]],
    [{ v1beta1: ["podcertificaterequests"], v1alpha1: ["clustertrustbundles"] }, ["v1alpha1"]],
  ])("served %o", async (versions, want) => {
    served = versions;
    store.put(bundle("a", one)).markSynced();
    await bundles.anchors({ name: "a", path: "p" }, never);
    expect(started).toEqual(want);
  });

  test("a server without them is named, and asked again by the next reader", async () => {
    served = {};
    const source = { name: "a", path: "p", optional: true };
    await expect(bundles.anchors(source, never)).rejects.toThrow("does not serve ClusterTrustBundles");
    served = { v1beta1: ["clustertrustbundles"] };
    store.markSynced();
    expect(await bundles.anchors(source, never)).toBe("");
  });

  test("what is missing is an error, or an empty file if it is optional", async () => {
    store.markSynced();
    await expect(bundles.anchors({ name: "a", path: "p" }, never)).rejects.toMatchObject({
      code: "NotFound",
      message: 'there is no ClusterTrustBundle "a"',
    });
    await expect(bundles.anchors({ signerName: "x/y", path: "p" }, never)).rejects.toThrow('of signer "x/y"');
    expect(await bundles.anchors({ name: "a", optional: true, path: "p" }, never)).toBe("");
  });

  test("does not wait for the first list for ever", async () => {
    const read = bundles.anchors({ name: "a", path: "p" }, never);
    read.catch(() => {});
    await clock.advance(syncWaitMs);
    await expect(read).rejects.toMatchObject({ code: "Unavailable" });
    expect(clock.pendingTimers).toBe(0);
  });

  test("tells of changes", async () => {
    store.markSynced();
    let told = 0;
    const end = bundles.onChange(() => (told += 1));
    await bundles.anchors({ name: "a", optional: true, path: "p" }, never);
    store.put(bundle("a", one));
    await settle();
    expect(told).toBe(1);
    end();
    store.put(bundle("a", two));
    expect(told).toBe(1);
  });
});
