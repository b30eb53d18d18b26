import { expect, test } from "vitest";
import { hasCode } from "../../../agent/lib/errors.ts";
import { createLogger } from "../../../agent/lib/log.ts";
import { attemptsMax, slowPullMs, slowPullRepeatMs } from "../../../agent/runtime/images-pull.ts";
import { FakeClock, settle } from "../kube/fake-clock.ts";
import { info, settable, setUp } from "./images-support.ts";

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

test("a clock that is set back an hour makes nobody wait longer, and one that is set ahead no shorter", async () => {
  for (const setMs of [-3_600_000, 3_600_000]) {
    const even = new FakeClock();
    const clock = settable(even);
    const { images, ensure, failure } = setUp({ clock, registryPullQPS: 1, registryBurst: 1 });
    images.pullError = () => new Error("away");
    await failure("app:1");
    clock.set(setMs);
    expect(await failure("app:1")).toMatchObject({ reason: "ImagePullBackOff", retryAtMs: clock.now() + 10_000 });
    expect(await failure("app:2", { pod: "other" })).toMatchObject({ message: "pull QPS exceeded" });
    images.pullError = undefined;
    await even.advance(10_000);
    await ensure("app:1");
  }
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
  images.pulls[0]?.onProgress?.({ layers: 2, layersDone: 1, downloadedBytes: 500, totalBytes: 2000 });
  await clock.advance(slowPullRepeatMs);
  images.pulls[0]?.end();
  await slow;
  const told = lines.map((line) => JSON.parse(line) as Record<string, unknown>);
  expect(told.map(({ image, seconds, msg }) => [image, seconds, msg])).toEqual([
    ["slow:1", 30, "image pull is still under way"],
    ["slow:1", 150, "image pull is still under way"],
    ["slow:1", 150, "slow image pull has ended"],
  ]);
  expect(told[0]).not.toHaveProperty("layers");
  expect(told[1]).toMatchObject({ layers: 2, layersDone: 1, downloadedBytes: 500, totalBytes: 2000 });
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

test("equal credentials are tried once, and no more than 32 in one pull, which people are told", async () => {
  const { images, failure } = setUp();
  images.pullError = () => new Error("denied");
  const named = (count: number) => Array.from({ length: count }, (_, n) => ({ username: `u${n}` }));
  const secret = { uid: "s", namespace: "ns", name: "again" };
  const repeated = [...named(attemptsMax), ...named(attemptsMax).map((auth) => ({ ...auth, secret }))];
  expect((await failure("app:1", { auths: repeated })).message).toBe("denied");
  expect(images.pulls.map(({ auth }) => auth?.username)).toEqual(named(32).map(({ username }) => username));
  expect((await failure("app:2", { auths: named(40) })).message).toBe(
    "denied (only the first 32 of 40 matching credentials were tried, name fewer secrets)",
  );
  expect(images.pulls).toHaveLength(64);
});

test("each credential that is tried counts for the rate, and the next one waits for it", async () => {
  const { images, clock, ensure, failure } = setUp({ registryPullQPS: 1, registryBurst: 2 });
  images.pullError = (auth) => (auth?.username === "u3" ? undefined : new Error("denied"));
  const auths = ["u0", "u1", "u2", "u3"].map((username) => ({ username }));
  const pulled = ensure("app:1", { auths });
  await settle();
  expect(images.pulls).toHaveLength(2);
  expect(await failure("app:2", { pod: "other" })).toMatchObject({ message: "pull QPS exceeded" });
  await clock.advance(1_000);
  expect(images.pulls).toHaveLength(3);
  await clock.advance(1_000);
  await pulled;
  expect(images.pulls).toHaveLength(4);
});

test("a pod that goes while its next credential waits for the rate ends the pull", async () => {
  const { images, clock, ensure } = setUp({ registryPullQPS: 1, registryBurst: 1 });
  images.pullError = () => new Error("denied");
  const gone = new AbortController();
  const pulled = ensure("app:1", { auths: [{ username: "a" }, { username: "b" }], signal: gone.signal });
  const ended = pulled.catch((err: unknown) => err);
  await settle();
  expect(clock.waiting).toBe(2); // for the rate, and to tell of a slow pull
  gone.abort();
  expect(hasCode(await ended, "Canceled")).toBe(true);
  await settle();
  expect(clock.waiting).toBe(0);
  expect(images.pulls).toHaveLength(1);
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

test("everybody who waits for a pull hears how far it is, who joins it at once, and who went no more", async () => {
  const heard: string[] = [];
  const { images, ensure } = setUp({
    onProgress: ({ metadata: { name } }, { name: container, image }, { layersDone }) =>
      heard.push(`${name} ${container} ${image} ${layersDone}`),
  });
  images.instant = false;
  const stop = new AbortController();
  const first = ensure("app:1", { pod: "a" });
  const goes = ensure("app:1", { pod: "b", signal: stop.signal }).catch(() => "gone");
  await settle();
  const progress = (layersDone: number) =>
    images.pulls[0]?.onProgress?.({ layers: 2, layersDone, downloadedBytes: 1, totalBytes: 2 });
  progress(0);
  expect(heard.splice(0)).toEqual(["a c app:1 0", "b c app:1 0"]);
  const joins = ensure("app:1", { pod: "d" });
  await settle();
  expect(heard.splice(0)).toEqual(["d c app:1 0"]);
  stop.abort();
  expect(await goes).toBe("gone");
  progress(1);
  expect(heard.splice(0)).toEqual(["a c app:1 1", "d c app:1 1"]);
  images.pulls[0]?.end();
  await Promise.all([first, joins]);
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

test("more pulls than the bucket holds fail with the reference's words, and refill with time", async () => {
  const { clock, ensure, failure } = setUp({ registryPullQPS: 1, registryBurst: 2 });
  await ensure("app:1");
  await ensure("app:2");
  expect(await failure("app:3")).toMatchObject({ reason: "ErrImagePull", message: "pull QPS exceeded" });
  await clock.advance(1_000);
  await ensure("app:4");
  expect(await failure("app:5")).toMatchObject({ message: "pull QPS exceeded" });
});
