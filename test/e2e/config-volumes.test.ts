import { createPrivateKey, createPublicKey, X509Certificate } from "node:crypto";
import { readFile, stat } from "node:fs/promises";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { ClusterTrustBundle, PodCertificateRequest } from "../../agent/kube/certificate-types.ts";
import { buildCertificate } from "../../agent/kube/certificates/x509.ts";
import { clusterTrustBundles, podCertificateRequests, pods, secrets } from "../../agent/kube/resources.ts";
import type { Pod, Volume, VolumeProjection } from "../../agent/kube/types.ts";
import { exec } from "../../agent/lib/exec.ts";
import { toPem } from "../../agent/lib/der.ts";
import { CertificateAuthority, parseSigningRequest } from "../support/apiserver/pki.ts";
import { isFinished, isReady, type TestNamespace, until } from "./support/cluster.ts";
import { type BreakableCluster, mountsOf, openBreakableCluster, restartAgent } from "./support/local.ts";
import { jobOf, podOf, shell } from "./support/pods.ts";

// Files that say who a pod is and whom it may trust, with the feature gates on that they are behind.

let breakable: BreakableCluster;
let cluster: TestNamespace;
const authority = CertificateAuthority.create("pods");
const hourMs = 3_600_000;

beforeAll(async () => {
  const featureGates = { ClusterTrustBundleProjection: true, PodCertificateRequest: true };
  breakable = await openBreakableCluster({ featureGates });
  ({ cluster } = breakable);
}, 120_000);
afterAll(() => breakable[Symbol.asyncDispose]());

const projected = (...sources: VolumeProjection[]): Volume[] => [{ name: "id", projected: { sources } }];
const volumeMounts = [{ name: "id", mountPath: "/id" }];
const messageOf = ({ status }: Pod) => status?.containerStatuses?.[0]?.state?.terminated?.message ?? "";

describe("trust bundles", () => {
  const [resource] = clusterTrustBundles;
  const bundle = (name: string, trustBundle: string, signerName?: string): ClusterTrustBundle => ({
    metadata: { name, labels: { live: "yes" } },
    spec: { trustBundle, ...(signerName === undefined ? {} : { signerName }) },
  });

  test("an optional one is an empty file, which fills while the pod runs, each certificate once", async () => {
    const source = { signerName: "example.com/ca", labelSelector: { matchLabels: { live: "yes" } } };
    const volumes = projected({ clusterTrustBundle: { ...source, optional: true, path: "ca.pem" } });
    const script = "test -f /id/ca.pem || exit 1; until test -s /id/ca.pem; do sleep 0.1; done; cat /id/ca.pem";
    const pod = jobOf("bundle", script, { volumes }, { volumeMounts });
    await cluster.createPod(pod);
    await cluster.waitForPod("bundle", "ready", isReady);
    const twice = authority.certificate + authority.certificate;
    await cluster.client.create(resource!, bundle("example.com:ca:one", `a word\n${twice}`, "example.com/ca"));
    const ended = await cluster.waitForPod("bundle", "finished", isFinished);
    expect(messageOf(ended)).toBe(new X509Certificate(authority.certificate).toString());
  });

  test("one that is missing is waited for, with an event that names it", async () => {
    const volumes = projected({ clusterTrustBundle: { name: "late", path: "ca.pem" } });
    await cluster.createPod(jobOf("late-bundle", "cat /id/ca.pem", { volumes }, { volumeMounts }));
    await until("the event", async () =>
      (await cluster.eventsOf("late-bundle")).find(({ reason, message }) => {
        return reason === "FailedMount" && message?.includes('there is no ClusterTrustBundle "late"');
      }),
    );
    await cluster.client.create(resource!, bundle("late", authority.certificate));
    const ended = await cluster.waitForPod("late-bundle", "finished", isFinished);
    expect(messageOf(ended)).toContain("BEGIN CERTIFICATE");
  });
});

describe("pod certificates", () => {
  const requestOf = async (pod: string): Promise<PodCertificateRequest> =>
    await until(`a request of pod ${pod}`, async () => {
      const { items } = await cluster.client.list(podCertificateRequests, { namespace: cluster.namespace });
      return items.find(({ spec, status }) => spec.podName === pod && (status?.conditions ?? []).length === 0);
    });
  const answer = async ({ metadata: { name, namespace = "" } }: PodCertificateRequest, status: object) =>
    await cluster.client.patch(
      podCertificateRequests,
      { namespace, name },
      { status },
      { type: "merge", subresource: "status" },
    );
  const condition = (type: string, reason: string, message: string) => ({
    type,
    status: "True",
    reason,
    message,
    lastTransitionTime: new Date().toISOString(),
  });

  /** As a signer in the cluster does. @param refreshInMs when the pod should ask for the next one */
  const issue = async (request: PodCertificateRequest, refreshInMs: number) => {
    const pem = toPem("CERTIFICATE REQUEST", Buffer.from(request.spec.stubPKCS10Request, "base64"));
    const { publicKey } = parseSigningRequest(pem);
    const [notBeforeMs, notAfterMs] = [Date.now() - 60_000, Date.now() + hourMs];
    const certificate = buildCertificate({
      template: { commonName: request.spec.podName, organizations: [], dnsNames: [], ips: [] },
      publicKey,
      issuer: { name: { commonName: "pods", organizations: [] }, key: createPrivateKey(authority.key) },
      isAuthority: false,
      notBeforeMs,
      notAfterMs,
    });
    await answer(request, {
      conditions: [condition("Issued", "Signed", "")],
      certificateChain: certificate + authority.certificate,
      notBefore: new Date(notBeforeMs).toISOString(),
      beginRefreshAt: new Date(Date.now() + refreshInMs).toISOString(),
      notAfter: new Date(notAfterMs).toISOString(),
    });
  };
  const source = (path: string): VolumeProjection => ({
    podCertificate: { signerName: "example.com/pods", keyType: "ECDSAP256", credentialBundlePath: path },
  });

  test("a pod waits for its certificate, whose key only it has", async () => {
    const volumes = projected(source("bundle.pem"));
    const pod = jobOf(
      "certified",
      "cat /id/bundle.pem; stat -Lc '%a %u' /id/bundle.pem",
      { volumes, securityContext: { runAsUser: 1000 } },
      { volumeMounts },
    );
    await cluster.createPod(pod);
    const request = await requestOf("certified");
    const { metadata } = await cluster.getPod("certified");
    expect(request.spec).toMatchObject({
      signerName: "example.com/pods",
      podUID: metadata.uid,
      serviceAccountName: "default",
    });
    expect(request.metadata.ownerReferences).toMatchObject([{ kind: "Pod", uid: metadata.uid }]);
    await issue(request, 30 * 60_000);
    const text = messageOf(await cluster.waitForPod("certified", "finished", isFinished));
    const certificate = new X509Certificate(text.slice(text.indexOf("-----BEGIN CERTIFICATE")));
    expect(certificate.subject).toBe("CN=certified");
    expect(certificate.checkPrivateKey(createPrivateKey(text))).toBe(true);
    expect(createPublicKey(text.slice(text.lastIndexOf("-----BEGIN CERT"))).asymmetricKeyType).toBe("ec");
    expect(text.trimEnd().split("\n").at(-1)).toBe("600 1000");
    const { stdout } = await exec("find", [breakable.local.rootDir, "-xdev", "-name", "bundle.pem"], {
      timeoutMs: 10_000,
    });
    expect(stdout).toBe("");
  });

  test("a refusal is an event and the reason that the pod does not start", async () => {
    await cluster.createPod(
      podOf("refused", [shell("main", "true", { volumeMounts })], { volumes: projected(source("b.pem")) }),
    );
    await answer(await requestOf("refused"), { conditions: [condition("Denied", "NotAllowed", "who are you?")] });
    const events = await until("both events", async () => {
      const found = await cluster.eventsOf("refused");
      const isTold = found.some(({ message }) => message?.includes("has to be replaced") === true);
      return isTold && found.some(({ reason }) => reason === "Denied") ? found : undefined;
    });
    expect(events.find(({ reason }) => reason === "Denied")?.message).toContain("was denied: NotAllowed: who are you?");
    expect((await cluster.getPod("refused")).status?.phase).toBe("Pending");
  });
});

describe("service-account tokens", () => {
  const dir = "/var/run/secrets/kubernetes.io/serviceaccount";

  test("are for their user or group alone, on no disk and in no log of the agent", async () => {
    const script = `cat ${dir}/token > /tmp/t; test -s /tmp/t || exit 1; stat -Lc '%a %u %g' ${dir}/token > /dev/termination-log; touch /tmp/ready; while true; do sleep 1; done`;
    const readinessProbe = { exec: { command: ["test", "-e", "/tmp/ready"] }, periodSeconds: 1 };
    const spec = { securityContext: { runAsUser: 1000, fsGroup: 2000 } };
    await cluster.createPod(podOf("token", [shell("main", script, { readinessProbe })], spec));
    const { metadata } = await cluster.waitForPod("token", "ready", isReady);
    const { local } = breakable;
    const mounts = (await mountsOf(breakable)).filter((path) =>
      path.includes(`${metadata.uid}/volumes/kubernetes.io~projected/`),
    );
    expect(mounts).toHaveLength(1);
    const token = await readFile(`${mounts[0]}/token`, "utf8");
    expect(token.split(".")).toHaveLength(3);
    const { mode, uid, gid } = await stat(`${mounts[0]}/token`);
    expect([(mode & 0o7777).toString(8), uid, gid]).toEqual(["640", 1000, 2000]);
    await restartAgent(breakable, "SIGKILL");
    const { stdout } = await exec(
      "find",
      [local.rootDir, local.agent.logPath, "-xdev", "-type", "f", "-exec", "grep", "-lF", token, "{}", "+"],
      { timeoutMs: 30_000 },
    );
    expect(stdout).toBe("");
  });

  test("are renewed in the running pod when four fifths of their life are over, whatever else happens to the pod", async () => {
    // A server may grant less than is asked for; the real one grants an hour at least.
    await breakable.fault({ tokenSecondsMax: 15 });
    const volumes = projected({ serviceAccountToken: { path: "token", expirationSeconds: 3600 } });
    const script =
      'first=$(cat /id/token); until [ "$(cat /id/token)" != "$first" ]; do sleep 0.2; done; ' +
      "for t in $first $(cat /id/token); do echo $t | cut -d. -f2; done";
    const pod = jobOf("renewed", script, { volumes, automountServiceAccountToken: false }, { volumeMounts });
    await cluster.createPod(pod);
    const ended = await cluster.waitForPod("renewed", "finished", isFinished);
    await breakable.fault({ clear: true });
    const [first, second] = messageOf(ended)
      .trim()
      .split("\n")
      .map((payload) => JSON.parse(Buffer.from(payload, "base64url").toString()) as { iat: number; exp: number });
    expect(second?.iat).toBeGreaterThan(first?.iat ?? Number.NaN);
    expect(second?.iat).toBeLessThanOrEqual(first?.exp ?? Number.NaN);
  });
});

test("an agent killed while a secret changes brings its files up to date when it is back", async () => {
  const data = (text: string) => ({ a: Buffer.from(text).toString("base64"), b: Buffer.from(text).toString("base64") });
  await cluster.create(secrets, { metadata: { name: "pair" }, data: data("1") });
  const volumes: Volume[] = [{ name: "id", secret: { secretName: "pair" } }];
  // Both files come from one version, which a reader sees by going through the same directory.
  const script =
    "while true; do v=$(readlink /id/..data); a=$(cat /id/$v/a 2>/dev/null); b=$(cat /id/$v/b 2>/dev/null); " +
    '[ "$v" = "$(readlink /id/..data)" ] || continue; [ "$a" = "$b" ] || { echo "$a is not $b"; exit 1; }; ' +
    '[ "$a" = last ] && { echo "saw last"; exit 0; }; done';
  await cluster.createPod(jobOf("pair", script, { volumes }, { volumeMounts }));
  await cluster.waitForPod("pair", "ready", isReady);
  const key = { namespace: cluster.namespace, name: "pair" };
  for (const text of ["2", "3", "4"]) {
    await cluster.client.patch(secrets, key, { data: data(text) }, { type: "merge" });
    await restartAgent(breakable, "SIGKILL");
  }
  await cluster.client.patch(secrets, key, { data: data("last") }, { type: "merge" });
  const ended = await cluster.waitForPod("pair", "finished", isFinished);
  expect(messageOf(ended)).toBe("saw last\n");
  await cluster.client.delete(pods, { namespace: cluster.namespace, name: "pair" });
});
