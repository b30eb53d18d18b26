import { expect, test } from "vitest";
import { systemClock } from "../../../../agent/lib/clock.ts";
import type { AgentError } from "../../../../agent/lib/errors.ts";
import { pullHeldUpMs, pullStallMs, registryAuth } from "../../../../agent/runtime/docker/image-pull.ts";
import { createDockerImages, imageOf, queryFor, userOfConfig } from "../../../../agent/runtime/docker/images.ts";
import { pullMessages, PullTracker } from "../../../../agent/runtime/docker/pull-progress.ts";
import type { PullProgress } from "../../../../agent/runtime/port.ts";
import { FakeClock } from "../../kube/fake-clock.ts";
import { type Answer, answered, fakeDocker, type FakeRequest, sendJSON } from "./fake-docker.ts";

const hex = (digit: string) => digit.repeat(64);
const id = (digit: string) => `sha256:${hex(digit)}`;

// As Docker 20.10 answers, cut to what matters.
const busybox = {
  Containers: -1,
  Created: 1_700_000_000,
  Id: id("a"),
  Labels: null,
  RepoDigests: [`busybox@${id("d")}`, "<none>@<none>"],
  RepoTags: ["busybox:latest", "registry.local:5000/team/box:1", "<none>:<none>"],
  SharedSize: -1,
  Size: 4_261_550,
  VirtualSize: 4_261_550,
};
const busyboxInspect = { ...busybox, Config: { User: "1000:1000" } };
const dangling = { Id: id("b"), RepoTags: null, RepoDigests: ["<none>@<none>"], Size: 7 };
const pause = { Id: id("c"), RepoTags: ["registry.k8s.io/pause:3.10"], RepoDigests: [], Size: 9 };

async function setUp(answer: Answer, clock = systemClock) {
  const fake = await fakeDocker(answer);
  const disk = { imageFs: () => Promise.resolve({ timestampMs: 1, mountpoint: "/data" }) };
  const images = createDockerImages(fake.client, { pauseImage: "registry.k8s.io/pause:3.10", disk, clock });
  return { ...fake, images };
}

const inspects =
  (...all: { Id: string; RepoTags: string[] | null }[]): Answer =>
  ({ path }) => {
    const name = decodeURIComponent(path).replace(/^\/images\/(.*)\/json$/, "$1");
    return all.find((one) => name === one.Id || (one.RepoTags ?? []).some((tag) => queryFor(tag) === name));
  };

test("images are listed with full names, without <none>, with their users and the pause image pinned", async () => {
  const looks = inspects(busyboxInspect, { ...dangling, RepoTags: [] }, { ...pause });
  await using t = await setUp((request, response) =>
    request.path === "/images/json" ? [busybox, dangling, pause] : looks(request, response),
  );
  const want = [
    {
      id: id("a"),
      repoTags: ["docker.io/library/busybox:latest", "registry.local:5000/team/box:1"],
      repoDigests: [`docker.io/library/busybox@${id("d")}`],
      sizeBytes: 4_261_550,
      uid: 1000,
      username: "",
      pinned: false,
    },
    { id: id("b"), repoTags: [], repoDigests: [], sizeBytes: 7, uid: undefined, username: "", pinned: false },
    {
      id: id("c"),
      repoTags: ["registry.k8s.io/pause:3.10"],
      repoDigests: [],
      sizeBytes: 9,
      uid: undefined,
      username: "",
      pinned: true,
    },
  ];
  expect(await t.images.listImages()).toEqual(want);
  expect(t.requests).toHaveLength(4);
  expect(await t.images.listImages()).toEqual(want);
  expect(t.requests).toHaveLength(5); // what an ID stands for is known by now
});

test("an image is asked for by its full name or ID only", () => {
  const cases: [string, string | undefined][] = [
    ["busybox", "docker.io/library/busybox:latest"],
    ["busybox:1", "docker.io/library/busybox:1"],
    ["team/app", "docker.io/team/app:latest"],
    ["registry.local:5000/app", "registry.local:5000/app:latest"],
    [`registry.local/app:1@${id("d")}`, `registry.local/app@${id("d")}`],
    [id("a"), id("a")],
    [hex("a"), id("a")],
    ["abcdef", "docker.io/library/abcdef:latest"], // the beginning of some ID
    ["not/../there?x", undefined],
    ["", undefined],
  ];
  for (const [image, want] of cases) expect(queryFor(image), image).toBe(want);
});

test("an image that is not there has no status, and cannot be removed wrongly", async () => {
  await using t = await setUp(() => undefined);
  expect(await t.images.imageStatus("busybox")).toBeUndefined();
  expect(await t.images.imageStatus("Bad Name")).toBeUndefined();
  await t.images.removeImage("busybox");
  expect(t.requests).toEqual([
    "GET /images/docker.io/library/busybox:latest/json",
    "GET /images/docker.io/library/busybox:latest/json",
  ]);
});

test("whom an image runs as", () => {
  const cases: [unknown, { uid: number | undefined; username: string }][] = [
    [{ User: "" }, { uid: undefined, username: "" }],
    [{}, { uid: undefined, username: "" }],
    [undefined, { uid: undefined, username: "" }],
    [{ User: "0" }, { uid: 0, username: "" }],
    [{ User: "65535:65535" }, { uid: 65_535, username: "" }],
    [{ User: "app:staff" }, { uid: undefined, username: "app" }],
  ];
  for (const [config, want] of cases) expect(userOfConfig(config)).toEqual(want);
});

test("an answer in another shape is an image without names", () => {
  expect(imageOf({ RepoTags: "busybox", Size: "9" })).toEqual({ id: "", repoTags: [], repoDigests: [], sizeBytes: 0 });
});

test("in use is what any container was made of or mounts, and what other images were built upon", async () => {
  await using t = await setUp(({ path, query }) => {
    if (query.get("all") === null) return undefined;
    if (path === "/images/json") return [{ ...busybox, ParentId: "" }, { Id: id("b"), ParentId: id("a") }, pause];
    return [
      { Id: "1", ImageID: id("1"), State: "exited", Labels: {}, Mounts: [{ Type: "bind", Source: "/data" }] },
      { Id: "2", ImageID: id("2"), State: "created", Mounts: [{ Type: "image", Source: "model:1" }] },
      { Id: "3" },
    ];
  });
  const used = await t.images.imagesInUse();
  expect([...used]).toEqual([id("1"), id("2"), "model:1", id("a")]);
});

test("an answer that is no list is an error, and removes nothing", async () => {
  await using t = await setUp(({ path }) => (path.endsWith("/json") && path !== "/images/json" ? busyboxInspect : {}));
  const error = { code: "Internal", message: "list images: the Docker daemon's answer is no list" };
  await expect(t.images.listImages()).rejects.toMatchObject(error);
  await expect(t.images.imagesInUse()).rejects.toMatchObject({ code: "Internal" });
  await expect(t.images.removeImage("busybox")).rejects.toMatchObject({ code: "Internal" });
  expect(t.requests.some((request) => request.startsWith("DELETE"))).toBe(false);
});

test("an image with names in several repositories goes name by name", async () => {
  const left = new Set(busybox.RepoTags);
  await using t = await setUp(({ method, path }) => {
    if (path === "/containers/json") return [{ Id: "x", Names: ["/x"], ImageID: id("e"), State: "running" }];
    const name = decodeURIComponent(path)
      .replace(/^\/images\//, "")
      .replace(/\/json$/, "");
    if (method !== "DELETE") return left.size > 1 ? busyboxInspect : undefined;
    for (const tag of left) if (queryFor(tag) === name) left.delete(tag);
    return [];
  });
  await t.images.removeImage(id("a"));
  expect(t.requests.slice(2)).toEqual([
    "DELETE /images/docker.io/library/busybox:latest",
    "DELETE /images/registry.local:5000/team/box:1",
    `GET /images/${id("a")}/json`,
  ]);
});

test("an image in use stays with all its names, and the error names the container", async () => {
  await using t = await setUp(({ method, path }) => {
    if (method === "DELETE") return [];
    if (path === "/containers/json") return [{ Id: "c1", Names: ["/db"], ImageID: id("a"), State: "exited" }];
    return busyboxInspect;
  });
  await expect(t.images.removeImage("busybox")).rejects.toMatchObject({
    code: "Conflict",
    message: `remove image ${id("a")}: it is in use by container db (exited); remove that first`,
  } satisfies Partial<AgentError>);
  expect(t.requests.some((request) => request.startsWith("DELETE"))).toBe(false);
});

// `docker pull` of Debian's dockerd 20.10, cut.
const stream = [
  { status: "Pulling from library/busybox", id: "latest" },
  { status: "Pulling fs layer", progressDetail: {}, id: "l1" },
  { status: "Already exists", progressDetail: {}, id: "l2" },
  { status: "Downloading", progressDetail: { current: 500, total: 2000 }, progress: "[==>  ]", id: "l1" },
  { status: "Retrying in 5 seconds", progressDetail: {}, id: "l1" },
  { status: "Verifying Checksum", progressDetail: {}, id: "l1" },
  { status: "Download complete", progressDetail: {}, id: "l1" },
  { status: "Extracting", progressDetail: { current: 100, total: 2000 }, id: "l1" },
  { status: "Pull complete", progressDetail: {}, id: "l1" },
  { status: `Digest: ${id("d")}` },
  { status: "Status: Downloaded newer image for busybox:latest" },
];
const text = (messages: readonly object[]) => messages.map((message) => `${JSON.stringify(message)}\r\n`).join("");

test("progress is read wherever the stream is cut", async () => {
  const whole = Buffer.from(text([...stream, { status: "é" }]));
  for (const size of [1, 7, 100_000]) {
    const chunks = (async function* () {
      for (let i = 0; i < whole.length; i += size) yield whole.subarray(i, i + size);
    })();
    const tracker = new PullTracker();
    const seen: PullProgress[] = [];
    let last = "";
    for await (const message of pullMessages(chunks)) {
      last = message.status;
      if (tracker.take(message) === "progress") seen.push(tracker.progress);
    }
    expect(last).toBe("é");
    expect(seen).toHaveLength(8);
    expect(seen[2]).toEqual({ layers: 2, layersDone: 1, downloadedBytes: 500, totalBytes: 2000 });
    expect(seen.at(-1)).toEqual({ layers: 2, layersDone: 2, downloadedBytes: 2000, totalBytes: 2000 });
  }
});

test("a line without an end is an error in bounded memory", async () => {
  const chunks = (async function* () {
    for (;;) yield Buffer.alloc(256 * 1024, "x");
  })();
  await expect(pullMessages(chunks).next()).rejects.toThrow("a line without an end");
});

test("a pull asks for one tag with the credential, tells its progress and answers with the ID", async () => {
  const pulls: FakeRequest[] = [];
  await using t = await setUp((request, response) => {
    if (request.path !== "/images/create") return busyboxInspect;
    pulls.push(request);
    response.end(text(stream));
    return answered;
  });
  const seen: PullProgress[] = [];
  const options = { annotations: {}, onProgress: (progress: PullProgress) => void seen.push(progress) };
  expect(await t.images.pullImage("busybox", { ...options, auth: { auth: btoa("me:p:w") } })).toBe(id("a"));
  expect(seen).toHaveLength(8);
  expect(await t.images.pullImage(`registry.local/app:1@${id("d")}`, options)).toBe(id("a"));
  expect(pulls.map(({ query }) => Object.fromEntries(query))).toEqual([
    { fromImage: "docker.io/library/busybox", tag: "latest" },
    { fromImage: "registry.local/app", tag: id("d") },
  ]);
  const [withAuth, anonymous] = pulls.map(({ headers }) => headers["x-registry-auth"]);
  expect(JSON.parse(Buffer.from(String(withAuth), "base64url").toString())).toEqual({
    username: "me",
    password: "p:w",
  });
  expect(anonymous).toBeUndefined();
});

test("credentials in the daemon's form", () => {
  const cases: [Parameters<typeof registryAuth>[0], object][] = [
    [
      { username: "u", password: "p", serverAddress: "r" },
      { username: "u", password: "p", serveraddress: "r" },
    ],
    [
      { username: "u", password: "p", auth: btoa("x:y") },
      { username: "u", password: "p" },
    ],
    [{ auth: btoa("u:p\0\0") }, { username: "u", password: "p" }],
    [{ auth: "garbage" }, {}],
    [{ identityToken: "i" }, { identitytoken: "i" }],
    [{ registryToken: "r" }, { registrytoken: "r" }],
  ];
  for (const [auth, want] of cases) expect(registryAuth(auth)).toEqual(want);
});

test("failures of a pull are the daemon's words, however they come", async () => {
  const cases: { name: string; answer: Answer; want: { code: string; message: string | RegExp } }[] = [
    {
      name: "before the stream",
      answer: (_request, response) => {
        sendJSON(response, 404, { message: "manifest for busybox:latest not found: manifest unknown" });
        return answered;
      },
      want: {
        code: "NotFound",
        message:
          "pull image busybox: Error response from daemon: manifest for busybox:latest not found: manifest unknown",
      },
    },
    {
      name: "within the stream",
      answer: (_request, response) => {
        const error = "no space left on device";
        response.end(text([...stream.slice(0, 4), { errorDetail: { message: error }, error }]));
        return answered;
      },
      want: { code: "Internal", message: "pull image busybox: Error response from daemon: no space left on device" },
    },
    {
      name: "a stream that breaks off",
      answer: (_request, response) => {
        response.write(text(stream.slice(0, 4)));
        setTimeout(() => response.destroy(), 10);
        return answered;
      },
      want: { code: "Unavailable", message: /^pull image busybox: the Docker daemon cannot be reached/ },
    },
  ];
  for (const { name, answer, want } of cases) {
    await using t = await setUp(answer);
    const err: unknown = await t.images.pullImage("busybox", { annotations: {} }).catch((e: unknown) => e);
    expect(err, name).toMatchObject({ code: want.code });
    expect((err as Error).message, name).toMatch(want.message);
  }
});

test("a success without an image is an error", async () => {
  await using t = await setUp(({ path }, response) => {
    if (path !== "/images/create") return undefined;
    response.end(text(stream));
    return answered;
  });
  await expect(t.images.pullImage("busybox", { annotations: {} })).rejects.toThrow(
    "pull image busybox: the daemon reports success but does not have the image",
  );
});

test("a pull that tells nothing for a minute is given up, and the daemon sees the request end", async () => {
  const clock = new FakeClock();
  const ended = Promise.withResolvers<void>();
  let told = 0;
  await using t = await setUp((_request, response) => {
    response.on("close", () => ended.resolve());
    response.write(text(stream.slice(0, 4)));
    return answered;
  }, clock);
  const pull = t.images.pullImage("busybox", { annotations: {}, onProgress: () => void (told += 1) });
  const outcome = pull.catch((err: unknown) => err);
  await expect.poll(() => told).toBe(3);
  await clock.advance(pullStallMs);
  expect(await outcome).toMatchObject({
    code: "DeadlineExceeded",
    message: "pull image busybox: no progress for 60 s (1 of 2 layers done, 500 bytes downloaded): given up",
  });
  await ended.promise;
  expect(clock.waiting).toBe(0);
});

test("a pull whose layers wait for the daemon itself is not given up so soon", async () => {
  const layer = (layerID: string, status: string, current = 0) => ({
    status,
    id: layerID,
    progressDetail: current > 0 ? { current, total: 1_000 } : {},
  });
  const begun = [layer("l1", "Pulling fs layer"), layer("l2", "Pulling fs layer"), layer("l1", "Already exists")];
  const downloading = [...begun, layer("l2", "Downloading", 10)];
  const cases: { name: string; messages: object[]; patienceMs: number }[] = [
    { name: "a layer is asked for", messages: begun, patienceMs: pullStallMs },
    { name: "a download hangs", messages: downloading, patienceMs: pullStallMs },
    {
      name: "one hangs while another waits for its turn",
      messages: [...downloading, layer("l3", "Pulling fs layer"), layer("l3", "Waiting")],
      patienceMs: pullStallMs,
    },
    { name: "all others' layers come first", messages: [...begun, layer("l2", "Waiting")], patienceMs: pullHeldUpMs },
    {
      name: "a slow disk",
      messages: [...begun, layer("l3", "Download complete"), layer("l2", "Extracting", 500)],
      patienceMs: pullHeldUpMs,
    },
    { name: "all layers are there", messages: [...begun, layer("l2", "Pull complete")], patienceMs: pullStallMs },
  ];
  for (const { name, messages, patienceMs } of cases) {
    const clock = new FakeClock();
    let told = 0;
    await using t = await setUp((_request, response) => {
      response.write(text(messages));
      return answered;
    }, clock);
    let error: unknown;
    const onProgress = () => void (told += 1);
    const pull = t.images.pullImage("busybox", { annotations: {}, onProgress }).catch((err: unknown) => (error = err));
    await expect.poll(() => told).toBe(messages.length);
    await clock.advance(patienceMs - 1);
    expect(error, name).toBeUndefined();
    await clock.advance(1);
    await pull;
    expect(error, name).toMatchObject({ code: "DeadlineExceeded" });
    expect(String(error)).toContain(`no progress for ${patienceMs / 1_000} s`);
  }
});

test("a daemon that says the same again and again tells of no progress", async () => {
  const clock = new FakeClock();
  const again = text([{ status: "Downloading", id: "l1", progressDetail: { current: 5, total: 10 } }]);
  let say = () => {};
  await using t = await setUp((_request, response) => {
    say = () => void response.write(again);
    say();
    return answered;
  }, clock);
  let told = 0;
  const onProgress = () => void (told += 1);
  const outcome = t.images.pullImage("busybox", { annotations: {}, onProgress }).catch((err: unknown) => err);
  await expect.poll(() => told).toBe(1);
  await clock.advance(pullStallMs - 1);
  say();
  await new Promise((resolve) => void setImmediate(resolve));
  await clock.advance(1);
  expect(await outcome).toMatchObject({ code: "DeadlineExceeded" });
  expect(told).toBe(1);
});

test("an abort ends the request", async () => {
  const ended = Promise.withResolvers<void>();
  const begun = Promise.withResolvers<void>();
  await using t = await setUp((_request, response) => {
    response.on("close", () => ended.resolve());
    response.write(text(stream.slice(0, 1)));
    begun.resolve();
    return answered;
  });
  const stop = new AbortController();
  const outcome = t.images.pullImage("busybox", { annotations: {}, signal: stop.signal }).catch((err: unknown) => err);
  await begun.promise;
  stop.abort();
  expect(await outcome).toMatchObject({ code: "Canceled" });
  await ended.promise;
});
