import { expect, test } from "vitest";
import type { Pod } from "../../../agent/kube/types.ts";
import { AgentError, hasCode } from "../../../agent/lib/errors.ts";
import { createLogger, silentLogger } from "../../../agent/lib/log.ts";
import { MetricsRegistry } from "../../../agent/lib/metrics.ts";
import {
  createImageManager,
  goDuration,
  type ImageManagerOptions,
  ImagePullError,
  slowPullMs,
  slowPullRepeatMs,
} from "../../../agent/runtime/images.ts";
import type { PullRecords } from "../../../agent/runtime/images-records.ts";
import { createImageMetrics } from "../../../agent/runtime/metrics.ts";
import type { ImageAuth, ImageInfo, ImageService, PodSandboxConfig } from "../../../agent/runtime/port.ts";
import { FakeClock, settle } from "../kube/fake-clock.ts";
import { metricsText } from "../lib/metrics-support.ts";

const info = (id: string): ImageInfo => ({
  id,
  repoTags: [],
  repoDigests: [],
  sizeBytes: 1234,
  uid: undefined,
  username: "",
  pinned: false,
});

/** A registry and a store: pulls end when the test says so, unless `instant`. */
class FakeImages implements ImageService {
  readonly present = new Map<string, ImageInfo>();
  readonly pulls: {
    image: string;
    auth: ImageAuth | undefined;
    end: (err?: Error) => void;
    signal: AbortSignal | undefined;
  }[] = [];
  statusError: Error | undefined;
  instant = true;
  pullError: ((auth: ImageAuth | undefined) => Error | undefined) | undefined;

  listImages = async () => [...this.present.values()];
  imageStatus = async (image: string) => {
    if (this.statusError !== undefined) throw this.statusError;
    return this.present.get(image);
  };
  pullImage: ImageService["pullImage"] = async (image, { auth, signal }) => {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const end = (err?: Error) => (err === undefined ? resolve() : reject(err));
    this.pulls.push({ image, auth, end, signal });
    signal?.addEventListener("abort", () => end(new AgentError("Canceled", "canceled")));
    const err = this.pullError?.(auth);
    if (this.instant || err !== undefined) end(err);
    await promise;
    const id = `sha256:${image}`;
    this.present.set(image, info(id)).set(id, info(id));
    return id;
  };
  removeImage = async (image: string) => void this.present.delete(image);
  fsInfo = async () => ({ imageFilesystems: [], containerFilesystems: [] });
}

const never = new AbortController().signal;
const sandbox = {} as PodSandboxConfig; // travels to the runtime untouched

function setUp(change: Partial<ImageManagerOptions> = {}) {
  const images = new FakeImages();
  const clock = new FakeClock();
  const events: string[] = [];
  const manager = createImageManager({
    images,
    clock,
    log: silentLogger,
    onEvent: (pod, _container, type, reason, message) =>
      events.push(`${pod.metadata.name} ${type} ${reason}: ${message}`),
    serializeImagePulls: false,
    registryPullQPS: 0,
    registryBurst: 0,
    ...change,
  });
  const ensure = async (
    image: string,
    options: {
      pod?: string;
      policy?: "Always" | "IfNotPresent" | "Never";
      auths?: ImageAuth[];
      signal?: AbortSignal;
    } = {},
  ) => {
    const name = options.pod ?? "web";
    const pod: Pod = { metadata: { name, namespace: "ns", uid: `uid-${name}` }, spec: { containers: [] } };
    const container = {
      name: "c",
      image,
      ...(options.policy === undefined ? {} : { imagePullPolicy: options.policy }),
    };
    return await manager.ensureImage(pod, container, sandbox, options.auths ?? [], options.signal ?? never);
  };
  const failure = async (...args: Parameters<typeof ensure>) => {
    const err: unknown = await ensure(...args).catch((e: unknown) => e);
    if (!(err instanceof ImagePullError)) throw new Error(`no ImagePullError but ${String(err)}`);
    return err;
  };
  return { images, clock, events, manager, ensure, failure };
}

test("a present image is used as it is", async () => {
  const { images, events, ensure } = setUp();
  images.present.set("app:1", info("sha256:1"));
  expect(await ensure("app:1", { policy: "IfNotPresent" })).toMatchObject({
    imageRef: "sha256:1",
    image: { sizeBytes: 1234 },
  });
  expect(await ensure("app:1", { policy: "Never" })).toMatchObject({ imageRef: "sha256:1" });
  expect(images.pulls).toEqual([]);
  expect(events[0]).toBe('web Normal Pulled: Container image "app:1" already present on machine');
});

test("an absent image is pulled, with the events that people look for", async () => {
  const { images, events, ensure } = setUp();
  expect(await ensure("app:1")).toMatchObject({ imageRef: "sha256:app:1" });
  expect(images.pulls.map(({ image }) => image)).toEqual(["app:1"]);
  expect(events).toEqual([
    'web Normal Pulling: Pulling image "app:1"',
    'web Normal Pulled: Successfully pulled image "app:1" in 0s (0s including waiting). Image size: 1234 bytes.',
  ]);
});

test("Always pulls what is present, and is the default for latest", async () => {
  const { images, ensure } = setUp();
  images.present.set("app:latest", info("sha256:old"));
  await ensure("app");
  await ensure("app:latest");
  images.present.set("app:1", info("sha256:old"));
  await ensure("app:1", { policy: "Always" });
  expect(images.pulls.map(({ image }) => image)).toEqual(["app:latest", "app:latest", "app:1"]);
});

test("people are told the image as the pod names it", async () => {
  const { images, events, ensure, failure } = setUp();
  await ensure("app");
  expect(images.pulls.map(({ image }) => image)).toEqual(["app:latest"]);
  images.pullError = () => new Error("away");
  await failure("other");
  expect((await failure("other")).message).toBe('Back-off pulling image "other": ErrImagePull: away');
  expect(events.join()).not.toContain(":latest");
});

test("Never and absent: ErrImageNeverPull", async () => {
  const { images, events, failure } = setUp();
  const err = await failure("app:1", { policy: "Never" });
  expect(err).toMatchObject({ reason: "ErrImageNeverPull", retryAtMs: undefined });
  expect(events).toEqual([
    'web Warning ErrImageNeverPull: Container image "app:1" is not present with pull policy of Never',
  ]);
  expect(images.pulls).toEqual([]);
});

test("a name that is none: InvalidImageName, and nobody is asked", async () => {
  const { events, failure } = setUp();
  const err = await failure("App:1");
  expect(err.reason).toBe("InvalidImageName");
  expect(err.message).toContain(
    'Failed to apply default image tag "App:1": couldn\'t parse image name "App:1": invalid reference format',
  );
  expect(events[0]).toMatch(/^web Warning InspectFailed: /);
});

test("the runtime cannot say: ImageInspectError", async () => {
  const { images, events, failure } = setUp();
  images.statusError = new Error("boom");
  expect(await failure("app:1")).toMatchObject({
    reason: "ImageInspectError",
    message: 'Failed to inspect image "app:1": boom',
  });
  expect(events).toEqual(['web Warning InspectFailed: Failed to inspect image "app:1": boom']);
});

const runtimeErrors = [
  { error: "not found", reason: "ErrImagePull", message: "not found" },
  {
    error: "RegistryUnavailable: 503",
    reason: "RegistryUnavailable",
    message: "image pull failed for app:1 because the registry is unavailable: 503",
  },
  {
    error: "SignatureValidationFailed: no key",
    reason: "SignatureValidationFailed",
    message: "image pull failed for app:1 because the signature validation failed: no key",
  },
];
for (const { error, reason, message } of runtimeErrors) {
  test(`a pull that fails with "${error}" is ${reason}`, async () => {
    const { images, events, failure } = setUp();
    images.pullError = () => new Error(error);
    expect(await failure("app:1")).toMatchObject({ reason, message });
    expect(events[1]).toBe(`web Warning Failed: Failed to pull image "app:1": ${error}`);
  });
}

test("backoff: 10 s doubling to 300 s, told with the last error, over exactly when it says", async () => {
  const { images, clock, events, ensure, failure } = setUp();
  images.pullError = () => new Error("away");
  for (const delaySeconds of [10, 20, 40, 80, 160, 300, 300]) {
    const first = await failure("app:1");
    expect(first).toMatchObject({ reason: "ErrImagePull", retryAtMs: clock.now() + delaySeconds * 1000 });
    const pulls = images.pulls.length;
    await clock.advance(delaySeconds * 1000 - 1);
    const waiting = await failure("app:1");
    expect(waiting).toMatchObject({
      reason: "ImagePullBackOff",
      message: 'Back-off pulling image "app:1": ErrImagePull: away',
      retryAtMs: first.retryAtMs,
    });
    expect(events.at(-1)).toBe('web Normal BackOff: Back-off pulling image "app:1"');
    expect(images.pulls).toHaveLength(pulls);
    await clock.advance(1);
  }
  images.pullError = undefined;
  await ensure("app:1");
});

test("backoff is one pod's own, forgotten with the pod and after 600 s", async () => {
  const { images, clock, manager, failure } = setUp();
  images.pullError = () => new Error("away");
  await failure("app:1");
  expect(await failure("app:1", { pod: "other" })).toMatchObject({ reason: "ErrImagePull" });
  expect(await failure("app:1")).toMatchObject({ reason: "ImagePullBackOff" });
  manager.forgetPod("uid-web");
  expect(await failure("app:1")).toMatchObject({ reason: "ErrImagePull", retryAtMs: clock.now() + 10_000 });
  await clock.advance(600_001);
  expect(await failure("app:1")).toMatchObject({ reason: "ErrImagePull", retryAtMs: clock.now() + 10_000 });
});

test("other credentials of the pod need not wait for the backoff of those that failed", async () => {
  const { images, clock, ensure, failure } = setUp();
  images.pullError = (auth) => (auth?.password === "good" ? undefined : new Error("denied"));
  const bad = { auths: [{ username: "u", password: "bad" }] };
  expect((await failure("app:1", bad)).retryAtMs).toBe(clock.now() + 10_000);
  expect((await failure("app:1", bad)).reason).toBe("ImagePullBackOff");
  const worse = { auths: [{ username: "u", password: "worse" }] };
  expect(await failure("app:1", worse)).toMatchObject({ reason: "ErrImagePull", retryAtMs: clock.now() + 20_000 });
  expect((await failure("app:1", worse)).reason).toBe("ImagePullBackOff");
  await ensure("app:1", { auths: [{ username: "u", password: "good" }] });
});

test("two containers of a pod that see one pull fail wait as long as one", async () => {
  const { images, clock, failure } = setUp();
  images.instant = false;
  const both = [failure("app:1"), failure("app:1")];
  await settle();
  expect(images.pulls).toHaveLength(1);
  images.pulls[0]?.end(new Error("away"));
  for (const err of await Promise.all(both)) expect(err.retryAtMs).toBe(clock.now() + 10_000);
});

test("the node's credentials come after the pod's, and are asked for only to pull", async () => {
  const asked: string[] = [];
  const { images, ensure, failure } = setUp({
    nodeCredentials: async (pod, repository) => {
      asked.push(`${pod.metadata.name} ${repository}`);
      return [{ username: "node" }];
    },
  });
  images.present.set("app:1", info("sha256:1"));
  await ensure("app:1");
  expect(asked).toEqual([]);
  images.pullError = () => new Error("denied");
  await failure("app:2", { auths: [{ username: "pod" }] });
  expect(images.pulls.map(({ auth }) => auth?.username)).toEqual(["pod", "node"]);
  await failure("app:2", { auths: [{ username: "pod" }] }); // backs off
  expect(asked).toEqual(["web docker.io/library/app"]);
});

test("a pod that goes does not wait for the node's credentials", async () => {
  const { images, ensure } = setUp({ nodeCredentials: async () => await new Promise(() => {}) });
  const gone = new AbortController();
  const pulling = ensure("app:1", { signal: gone.signal }).catch((e: unknown) => e);
  await settle();
  gone.abort();
  expect(hasCode(await pulling, "Canceled")).toBe(true);
  expect(images.pulls).toEqual([]);
});

test("a pull that seems to hang is told in the log, now and then and at its end", async () => {
  const lines: string[] = [];
  const log = createLogger({ level: "info", stream: { write: (line: string) => void lines.push(line) } });
  const { images, clock, ensure } = setUp({ log });
  images.instant = false;
  const slow = ensure("slow:1");
  await settle();
  await clock.advance(slowPullMs - 1);
  expect(lines).toEqual([]);
  await clock.advance(1);
  await clock.advance(slowPullRepeatMs);
  images.pulls[0]?.end();
  await slow;
  const told = lines.map((line) => JSON.parse(line) as Record<string, unknown>);
  expect(told.map(({ image, seconds, msg }) => [image, seconds, msg])).toEqual([
    ["slow:1", 30, "image pull is still under way"],
    ["slow:1", 150, "image pull is still under way"],
    ["slow:1", 150, "slow image pull has ended"],
  ]);
  const quick = ensure("quick:1");
  await settle();
  images.pulls[1]?.end();
  await quick;
  expect([lines.length, clock.waiting]).toEqual([3, 0]);
});

test("a registry that hangs holds up the others only as far as the limit says, and is left when its pod goes", async () => {
  const { images, ensure } = setUp({ serializeImagePulls: true });
  images.instant = false;
  const gone = new AbortController();
  const hanging = ensure("hangs:1", { pod: "a", signal: gone.signal }).catch((e: unknown) => e);
  const next = ensure("app:1", { pod: "b" });
  await settle();
  expect(images.pulls.map(({ image }) => image)).toEqual(["hangs:1"]);
  gone.abort();
  await hanging;
  await settle();
  expect(images.pulls.map(({ image }) => image)).toEqual(["hangs:1", "app:1"]);
  images.pulls[1]?.end();
  await next;
});

test("credentials are tried in order until one works", async () => {
  const { images, ensure } = setUp();
  images.pullError = (auth) => (auth?.username === "good" ? undefined : new Error("denied"));
  await ensure("app:1", { auths: [{ username: "bad" }, { username: "good" }, { username: "unused" }] });
  expect(images.pulls.map(({ auth }) => auth?.username)).toEqual(["bad", "good"]);
});

test("all credentials fail: one text for equal errors, a list for different ones", async () => {
  const { images, failure } = setUp();
  images.pullError = () => new Error("denied");
  expect(await failure("app:1", { auths: [{ username: "a" }, { username: "b" }] })).toMatchObject({
    message: "denied",
  });
  images.pullError = (auth) => new Error(`denied ${auth?.username}`);
  const err = await failure("app:2", { auths: [{ username: "a" }, { username: "b" }] });
  expect(err.message).toBe("[denied a, denied b]");
});

test("pods that want the same with the same credentials share a pull; others do not", async () => {
  const { images, events, ensure } = setUp();
  images.instant = false;
  const all = [
    ensure("app:1", { pod: "a" }),
    ensure("app:1", { pod: "b" }),
    ensure("app:1", { pod: "c", auths: [{ username: "u" }] }),
    ensure("app:2", { pod: "d" }),
  ];
  await settle();
  expect(images.pulls.map(({ image, auth }) => `${image} ${auth?.username ?? "-"}`)).toEqual([
    "app:1 -",
    "app:1 u",
    "app:2 -",
  ]);
  for (const { end } of images.pulls) end();
  await Promise.all(all);
  expect(events.filter((event) => event.includes("Successfully pulled"))).toHaveLength(4);
});

test("a pod that goes leaves a shared pull alone; the last one ends it", async () => {
  const { images, events, ensure } = setUp();
  images.instant = false;
  const [first, second] = [new AbortController(), new AbortController()];
  const a = ensure("app:1", { pod: "a", signal: first.signal }).catch((e: unknown) => e);
  const b = ensure("app:1", { pod: "b", signal: second.signal }).catch((e: unknown) => e);
  await settle();
  first.abort();
  expect(hasCode(await a, "Canceled")).toBe(true);
  expect(images.pulls[0]?.signal?.aborted).toBe(false);
  second.abort();
  expect(hasCode(await b, "Canceled")).toBe(true);
  expect(images.pulls[0]?.signal?.aborted).toBe(true);
  expect(events.filter((event) => event.includes("Failed"))).toEqual([]);
});

test("serialized pulls come one after the other, and waiting shows in the event", async () => {
  const { images, clock, events, ensure } = setUp({ serializeImagePulls: true });
  images.instant = false;
  const first = ensure("app:1", { pod: "a" });
  const second = ensure("app:2", { pod: "b" });
  await settle();
  expect(images.pulls).toHaveLength(1);
  await clock.advance(1_500);
  images.pulls[0]?.end();
  await first;
  await settle();
  expect(images.pulls.map(({ image }) => image)).toEqual(["app:1", "app:2"]);
  await clock.advance(40);
  images.pulls[1]?.end();
  await second;
  expect(events.at(-1)).toContain("in 40ms (1.54s including waiting)");
});

test("parallel pulls stop at their limit", async () => {
  const { images, ensure } = setUp({ maxParallelImagePulls: 2 });
  images.instant = false;
  const all = [1, 2, 3].map(async (n) => await ensure(`app:${n}`));
  await settle();
  expect(images.pulls).toHaveLength(2);
  images.pulls[0]?.end();
  await settle();
  expect(images.pulls).toHaveLength(3);
  for (const { end } of images.pulls) end();
  await Promise.all(all);
});

test("an image that others' credentials brought is pulled again, and not given with Never", async () => {
  const records: PullRecords = {
    mustPull: async (image) =>
      image === "secret:1" || (image === "broken:1" && (await Promise.reject(new Error("EIO")))),
    recordPull: async (_image, pull) => await pull(),
    recover: async () => {},
    prune: async () => {},
  };
  const { images, ensure, failure } = setUp({ records });
  for (const image of ["secret:1", "broken:1", "open:1"]) images.present.set(image, info("sha256:1"));
  images.pullError = () => new Error("denied");
  expect(await failure("secret:1")).toMatchObject({ reason: "ErrImagePull", message: "denied" });
  const never = await failure("secret:1", { policy: "Never" });
  expect(never.reason).toBe("ErrImageNeverPull");
  expect(never.message).toContain("does not have the proper credentials");
  expect(await failure("broken:1")).toMatchObject({ reason: "ErrImagePull" });
  expect(await ensure("open:1")).toMatchObject({ imageRef: "sha256:1" });
});

test("more pulls than the bucket holds fail with the reference's words, and refill with time", async () => {
  const { clock, ensure, failure } = setUp({ registryPullQPS: 1, registryBurst: 2 });
  await ensure("app:1");
  await ensure("app:2");
  expect(await failure("app:3")).toMatchObject({ reason: "ErrImagePull", message: "pull QPS exceeded" });
  await clock.advance(1_000);
  await ensure("app:4");
  expect(await failure("app:5")).toMatchObject({ message: "pull QPS exceeded" });
});

for (const [ms, want] of [
  [0.4, "0s"],
  [12.9, "12ms"],
  [1_000, "1s"],
  [1_234, "1.234s"],
  [62_500, "1m2.5s"],
  [3_603_000, "1h0m3s"],
] as const) {
  test(`${ms} ms reads ${want}`, () => expect(goDuration(ms)).toBe(want));
}

test("every wish for an image is counted, by what was there and what it took", async () => {
  const registry = new MetricsRegistry();
  const records: PullRecords = {
    mustPull: async (_image, imageRef) => imageRef === "sha256:secret",
    recordPull: async (_image, pull) => await pull(),
    recover: async () => {},
    prune: async () => {},
  };
  const { images, clock, ensure, failure } = setUp({ metrics: createImageMetrics(registry), records });
  images.present.set("app:1", info("sha256:1")).set("secret:1", info("sha256:secret"));
  await ensure("app:1");
  await ensure("secret:1");
  await ensure("app:1", { policy: "Always" });
  await failure("gone:1", { policy: "Never" });
  await failure("UPPER:1");
  images.instant = false;
  const slow = ensure("slow:1");
  await settle();
  await clock.advance(2_000);
  images.pulls.at(-1)?.end();
  await slow;
  images.statusError = new Error("no answer");
  await failure("app:1");
  const shown = await metricsText(registry);
  const lines = shown.split("\n").filter((line) => line.startsWith("kubelet_image_manager_ensure"));
  const name = "kubelet_image_manager_ensure_image_requests_total";
  expect(lines.sort()).toEqual([
    `${name}{present_locally="false",pull_policy="ifnotpresent",pull_required="true"} 1`,
    `${name}{present_locally="false",pull_policy="never",pull_required="false"} 1`,
    `${name}{present_locally="true",pull_policy="ifnotpresent",pull_required="false"} 1`,
    `${name}{present_locally="true",pull_policy="ifnotpresent",pull_required="true"} 1`,
    `${name}{present_locally="unknown",pull_policy="always",pull_required="true"} 1`,
    `${name}{present_locally="unknown",pull_policy="ifnotpresent",pull_required="unknown"} 2`,
  ]);
  expect(shown).toContain('kubelet_image_pull_duration_seconds_sum{image_size_in_bytes="0-10MB"} 2\n');
  expect(shown).toContain('kubelet_image_pull_duration_seconds_count{image_size_in_bytes="0-10MB"} 3\n');
});
