import { createHash } from "node:crypto";
import { mkdtemp, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { silentLogger } from "../../../agent/lib/log.ts";
import { MetricsRegistry } from "../../../agent/lib/metrics.ts";
import type { ImageCredential } from "../../../agent/runtime/images-auth.ts";
import {
  addPull,
  type ImagePulledRecord,
  mustProveAccess,
  openPullRecords,
  type PullRecordsOptions,
  type VerificationPolicy,
} from "../../../agent/runtime/images-records.ts";
import type { ImageInfo, ImageService } from "../../../agent/runtime/port.ts";
import { info } from "./images-support.ts";

const repository = "quay.io/team/app";
const image = `${repository}:1`;
const nowMs = Date.UTC(2026, 0, 1);
const credential = (name: string, password = "p"): ImageCredential => ({
  username: "u",
  password,
  secret: { uid: `uid-${name}`, namespace: "ns", name },
});
const byAccount = (name: string, password = "p"): ImageCredential => ({
  username: "u",
  password,
  serviceAccount: { uid: `uid-${name}`, namespace: "ns", name },
});
const pulledWith = (with_: ImageCredential | undefined) =>
  addPull(undefined, { imageRef: "sha256:1", repository, credential: with_, nowMs });

const preloaded: VerificationPolicy = { kind: "NeverVerifyPreloadedImages" };
const allowlisted: VerificationPolicy = {
  kind: "NeverVerifyAllowlistedImages",
  allowlist: ["quay.io/team/*", "a.io/b"],
};
const mine = credential("mine");

const cases: {
  name: string;
  policy?: VerificationPolicy;
  repository?: string;
  wasPulled?: boolean;
  record?: ImagePulledRecord;
  has?: ImageCredential[];
  want: boolean;
}[] = [
  { name: "preloaded images are anyone's", wasPulled: false, want: false },
  { name: "with AlwaysVerify they are not", policy: { kind: "AlwaysVerify" }, wasPulled: false, want: true },
  { name: "a pull that was cut off proves nothing", want: true },
  { name: "pulled without credentials: anyone's", record: pulledWith(undefined), want: false },
  { name: "pulled with the node's credentials: anyone's", record: pulledWith({ username: "node" }), want: false },
  { name: "pulled with a secret: not a pod's without one", record: pulledWith(mine), want: true },
  { name: "the same secret", record: pulledWith(mine), has: [mine], want: false },
  {
    name: "the same secret after its password changed",
    record: pulledWith(mine),
    has: [credential("mine", "new")],
    want: false,
  },
  { name: "another secret with equal content", record: pulledWith(mine), has: [credential("other")], want: false },
  { name: "another secret with other content", record: pulledWith(mine), has: [credential("other", "x")], want: true },
  {
    name: "pulled from another repository",
    record: pulledWith(undefined),
    repository: "quay.io/other/app",
    want: true,
  },
  {
    name: "the same service account",
    record: pulledWith(byAccount("builder")),
    has: [byAccount("builder", "renewed")],
    want: false,
  },
  {
    name: "another service account, even with an equal credential",
    record: pulledWith(byAccount("builder")),
    has: [byAccount("other")],
    want: true,
  },
  { name: "NeverVerify", policy: { kind: "NeverVerify" }, record: pulledWith(mine), want: false },
  { name: "allowlisted by prefix", policy: allowlisted, record: pulledWith(mine), want: false },
  { name: "allowlisted exactly", policy: allowlisted, repository: "a.io/b", want: false },
  { name: "not allowlisted", policy: allowlisted, repository: "a.io/bc", wasPulled: false, want: true },
];
for (const { name, policy = preloaded, wasPulled = true, record, has = [], want, ...rest } of cases) {
  test(`a present image must ${want ? "" : "not "}be pulled again: ${name}`, () => {
    expect(mustProveAccess(policy, rest.repository ?? repository, wasPulled, record, has)).toBe(want);
  });
}

test("records grow by secret, replace the same one, and end once everyone may", () => {
  const pull = (record: ImagePulledRecord | undefined, by: ImageCredential | undefined) =>
    addPull(record, { imageRef: "sha256:1", repository, credential: by, nowMs });
  const two = pull(pull(pull(undefined, mine), credential("other")), credential("mine", "new"));
  expect(two.lastUpdatedTime).toBe("2026-01-01T00:00:00Z");
  expect(two.credentialMapping[repository]?.kubernetesSecrets?.map(({ name }) => name)).toEqual(["other", "mine"]);
  const all = pull(two, undefined);
  expect(all.credentialMapping[repository]).toEqual({ nodePodsAccessible: true });
  expect(pull(all, mine)).toEqual(all);
});

let dir: string;
let options: PullRecordsOptions;
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), "nodelet-records-"));
  options = { dir: join(dir, "image_manager"), policy: preloaded, now: () => nowMs, log: silentLogger };
});
afterEach(async () => {
  await rm(dir, { recursive: true, force: true });
});

const present: Pick<ImageService, "imageStatus"> = {
  imageStatus: async (name) => (name === image ? ({ id: "sha256:1" } as ImageInfo) : undefined),
};

test("a pull is remembered across restarts, without its password, in files of root alone", async () => {
  const records = await openPullRecords(options);
  const outcome = { imageRef: "sha256:1", credential: credential("mine", "s3cret") };
  expect(await records.recordPull(image, async () => outcome)).toBe(outcome);

  const again = await openPullRecords(options);
  expect(await again.mustPull(image, "sha256:1", async () => [outcome.credential])).toBe(false);
  expect(await again.mustPull(image, "sha256:1", async () => [])).toBe(true);
  expect(await again.mustPull("quay.io/team/other:1", "sha256:2", async () => [])).toBe(false);

  expect(await readdir(join(options.dir, "pulling"))).toEqual([]);
  const [file = ""] = await readdir(join(options.dir, "pulled"));
  expect(file).toMatch(/^sha256-[0-9a-f]{64}$/);
  const path = join(options.dir, "pulled", file);
  const text = await readFile(path, "utf8");
  expect(JSON.parse(text)).toMatchObject({ kind: "ImagePulledRecord", imageRef: "sha256:1" });
  expect(text).not.toContain("s3cret");
  expect((await stat(path)).mode & 0o777).toBe(0o600);
  expect((await stat(join(options.dir, "pulled"))).mode & 0o777).toBe(0o700);

  const { signal } = new AbortController();
  await again.prune(async () => [info("sha256:1")], signal);
  expect(await readdir(join(options.dir, "pulled"))).toHaveLength(1);
  await again.prune(async () => [{ ...info("sha256:2"), repoDigests: ["sha256:1"] }], signal);
  expect(await readdir(join(options.dir, "pulled"))).toHaveLength(1);
  await again.prune(async () => [], signal);
  expect(await readdir(join(options.dir, "pulled"))).toEqual([]);
});

test("what a writer left that was killed goes with the next pruning; what one is writing stays", async () => {
  const killed = await openPullRecords(options);
  const leftover = join(options.dir, "pulled", "sha256-1.0123456789ab.tmp");
  await killed.recordPull(image, async () => ({ imageRef: "sha256:1", credential: undefined }));
  await writeFile(leftover, "{");

  const records = await openPullRecords(options);
  const images = [info("sha256:1"), info("sha256:2")];
  const other = async () => ({ imageRef: "sha256:2", credential: undefined });
  await Promise.all([
    records.prune(async () => images, new AbortController().signal),
    records.recordPull("quay.io/team/other:1", other),
  ]);
  const files = await readdir(join(options.dir, "pulled"));
  expect(files).toHaveLength(2);
  expect(files.filter((name) => name.endsWith(".tmp"))).toEqual([]);
});

test("an end of the agent leaves a pruning that waits for the runtime, and nothing goes", async () => {
  const records = await openPullRecords(options);
  await records.recordPull(image, async () => ({ imageRef: "sha256:1", credential: undefined }));
  const stop = new AbortController();
  const late = Promise.withResolvers<ImageInfo[]>();
  const pruning = records.prune(async () => await late.promise, stop.signal);
  stop.abort();
  await expect(pruning).rejects.toMatchObject({ code: "Canceled" });
  late.resolve([]);
  expect(await records.mustPull(image, "sha256:1", async () => [])).toBe(false);
  expect(await readdir(join(options.dir, "pulled"))).toHaveLength(1);
});

test("the record of an image that comes while records are pruned stays", async () => {
  const records = await openPullRecords(options);
  const pulled = async (imageRef: string) =>
    await records.recordPull(image, async () => ({ imageRef, credential: undefined }));
  await pulled("sha256:gone");
  const present: ImageInfo[] = [];
  // The runtime was asked before the pull ended, and answers after.
  const first = Promise.withResolvers<ImageInfo[]>();
  const answers = [first.promise];
  const pruning = records.prune(async () => (await answers.pop()) ?? present, new AbortController().signal);
  await pulled("sha256:came");
  present.push(info("sha256:came"));
  first.resolve([]);
  await pruning;
  expect(await readdir(join(options.dir, "pulled"))).toHaveLength(1);
  expect(await records.mustPull(image, "sha256:came", async () => [])).toBe(false);
});

test("a failed pull leaves nothing; the last of several removes the intent", async () => {
  const records = await openPullRecords(options);
  await expect(records.recordPull(image, async () => await Promise.reject(new Error("denied")))).rejects.toThrow(
    "denied",
  );
  expect(await readdir(join(options.dir, "pulling"))).toEqual([]);

  const { promise, resolve } = Promise.withResolvers<{ imageRef: string; credential: undefined }>();
  const slow = records.recordPull(image, async () => await promise);
  await records.recordPull(image, async () => ({ imageRef: "sha256:1", credential: undefined }));
  expect(await readdir(join(options.dir, "pulling"))).toHaveLength(1);
  resolve({ imageRef: "sha256:1", credential: undefined });
  await slow;
  expect(await readdir(join(options.dir, "pulling"))).toEqual([]);
});

test("after a crash in the middle of a pull nobody has access without pulling", async () => {
  const crashed = await openPullRecords(options);
  void crashed.recordPull(image, async () => await new Promise(() => {}));
  const intents = async () => (await readdir(join(options.dir, "pulling"))).filter((name) => !name.endsWith(".tmp"));
  await expect.poll(intents).toHaveLength(1);

  const records = await openPullRecords(options);
  await records.recover(present as ImageService);
  expect(await readdir(join(options.dir, "pulling"))).toEqual([]);
  expect(await records.mustPull(image, "sha256:1", async () => [mine])).toBe(true);
});

test("an intent that cannot be looked into stays for the next start, and holds nobody up", async () => {
  const crashed = await openPullRecords(options);
  void crashed.recordPull(image, async () => await new Promise(() => {}));
  const intents = async () => (await readdir(join(options.dir, "pulling"))).filter((name) => !name.endsWith(".tmp"));
  await expect.poll(intents).toHaveLength(1);

  const records = await openPullRecords(options);
  const away = { imageStatus: async () => await Promise.reject(new Error("runtime is away")) };
  await records.recover(away as unknown as ImageService);
  expect(await intents()).toHaveLength(1);
  expect(await records.mustPull(image, "sha256:1", async () => [mine])).toBe(true);
});

test("a pull that cannot be recorded does not make its image everybody's", async () => {
  const records = await openPullRecords(options);
  await rm(join(options.dir, "pulled"), { recursive: true });
  const outcome = { imageRef: "sha256:1", credential: mine };
  expect(await records.recordPull(image, async () => outcome)).toBe(outcome);
  expect(await records.mustPull(image, "sha256:1", async () => [])).toBe(true);
});

test("credentials are hashed as the reference does, so that its records stay good", () => {
  const hashOf = (one: ImageCredential) =>
    pulledWith({ ...one, secret: { uid: "1", namespace: "ns", name: "s" } }).credentialMapping[repository]
      ?.kubernetesSecrets?.[0]?.credentialHash;
  const sha256 = (text: string) => createHash("sha256").update(text).digest("hex");
  expect(hashOf({ username: "u", password: "<&>" })).toBe(
    sha256(String.raw`{"username":"u","password":"\u003c\u0026\u003e"}`),
  );
  expect(hashOf({ username: "u", password: "" })).toBe(sha256('{"username":"u"}'));
});

test("credentials are asked for only when they decide", async () => {
  const records = await openPullRecords(options);
  let asked = 0;
  const ask = async () => {
    asked += 1;
    return [mine];
  };
  await records.mustPull(image, "sha256:1", ask); // not pulled by the agent
  await records.recordPull(image, async () => ({ imageRef: "sha256:1", credential: undefined }));
  await records.mustPull(image, "sha256:1", ask); // everyone may
  expect(asked).toBe(0);
  await records.recordPull("quay.io/secret:1", async () => ({ imageRef: "sha256:2", credential: mine }));
  expect(await records.mustPull("quay.io/secret:1", "sha256:2", ask)).toBe(false);
  expect(asked).toBe(1);
});

test("a damaged record means: pull", async () => {
  const records = await openPullRecords(options);
  await records.recordPull(image, async () => ({ imageRef: "sha256:1", credential: undefined }));
  const [file = ""] = await readdir(join(options.dir, "pulled"));
  for (const damage of ["", "{", "[]", '{"imageRef":"sha256:1","credentialMapping":{"quay.io/team/app":7}}']) {
    await writeFile(join(options.dir, "pulled", file), damage);
    expect(await records.mustPull(image, "sha256:1", async () => [])).toBe(true);
  }
});

test("checks are counted by what decided them", async () => {
  const registry = new MetricsRegistry();
  const records = await openPullRecords({ ...options, registry });
  await records.mustPull(image, "sha256:1", async () => []); // preloaded
  await records.recordPull(image, async () => ({ imageRef: "sha256:1", credential: mine }));
  await records.mustPull(image, "sha256:1", async () => [mine]);
  await records.mustPull(image, "sha256:1", async () => []);
  await rm(options.dir, { recursive: true });
  await writeFile(options.dir, "no directory");
  await expect(records.mustPull(image, "sha256:1", async () => [])).rejects.toThrow();
  const name = "kubelet_imagemanager_image_mustpull_checks_total";
  const [family] = (await registry.families()).filter((one) => one.name === name);
  expect([...(family?.samples ?? [])].map(({ labels, value }) => [labels["result"], value])).toEqual([
    ["credentialPolicyAllowed", 1],
    ["credentialRecordFound", 1],
    ["mustAuthenticate", 1],
    ["error", 1],
  ]);
});
