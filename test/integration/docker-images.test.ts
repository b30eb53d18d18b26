import { afterAll, beforeAll, beforeEach, expect, test } from "vitest";
import type { PodSandboxConfig, PullProgress, Runtime } from "../../agent/runtime/port.ts";
import { busyboxImageName, customImage, pauseImageName } from "../support/images/images.ts";
import { registryUser, startRegistry, type TestRegistry } from "../support/node/registry.ts";
import { sandboxConfig } from "../support/runtime/configs.ts";
import { recordedImages } from "../support/runtime/recorded-images.ts";
import { startTestDocker, type TestDocker } from "../support/runtime/docker.ts";

let docker: TestDocker;
let registry: TestRegistry;
let runtime: Runtime;
let sandbox: PodSandboxConfig;
let images: ReturnType<typeof recordedImages>;

beforeAll(async () => {
  docker = await startTestDocker();
  registry = await startRegistry(docker.node, { name: docker.registryName, withCredentials: true });
  runtime = await docker.connect();
  sandbox = await sandboxConfig(docker.node.dir, docker.node.cgroupRoot);
  await registry.push(await customImage({ name: named("team/app:1"), user: "1000:7" }));
});
afterAll(async () => {
  await runtime?.close();
  await docker?.destroy();
});
beforeEach(() => {
  images = recordedImages(runtime.images, sandbox);
});

const named = (path: string) => `${docker.registryName}/${path}`;
const pull = async (image: string, options: { signal?: AbortSignal; onProgress?: (p: PullProgress) => void } = {}) =>
  await runtime.images.pullImage(image, { annotations: {}, auth: registryUser, ...options });

test("without credentials, or with wrong ones, a private image does not come, and nothing secret is told", async () => {
  for (const auths of [[], [{ username: "puller", password: "wr0ng" }]]) {
    const err = await images.failure(named("team/app:1"), auths);
    expect(err.reason).toBe("ErrImagePull");
    expect(err.message).toMatch(
      /^pull image \S+\/team\/app:1: Error response from daemon: .*(credentials|unauthorized)/,
    );
    expect([...images.events, err.message].join()).not.toContain("wr0ng");
    images.forget();
  }
});

test("a pause image of a private registry comes with what the node has for it, and not without", async () => {
  const pauseImage = named("node/pause:1");
  await registry.push(await customImage({ name: pauseImage, cmd: ["sleep", "1000"] }));
  const anonymous = await docker.connect({ pauseImage });
  const wrong = await docker.connect({
    pauseImage,
    pauseImageCredentials: async () => [{ username: "puller", password: "wr0ng" }],
  });
  const right = await docker.connect({
    pauseImage,
    pauseImageCredentials: async () => [{ username: "puller", password: "0ld" }, registryUser],
  });
  try {
    for (const one of [anonymous, wrong]) {
      const err: unknown = await one.runPodSandbox(sandbox, "").catch((e: unknown) => e);
      expect(String(err)).toMatch(/image of the sandbox: pull image \S+\/node\/pause:1: .*(credentials|unauthorized)/);
      expect(String(err)).not.toContain("wr0ng");
    }
    const id = await right.runPodSandbox(sandbox, "");
    expect(await right.sandboxProcess(id)).toMatchObject({ image: pauseImage });
    expect(await right.images.imageStatus(pauseImage)).toMatchObject({ pinned: true });
    await right.stopPodSandbox(id);
    await right.removePodSandbox(id);
  } finally {
    for (const one of [anonymous, wrong, right]) await one.close();
  }
});

test("with its credentials it comes, and its progress is told", async () => {
  const seen: PullProgress[] = [];
  const id = await pull(named("team/app:1"), { onProgress: (progress) => void seen.push(progress) });
  const last = seen.at(-1);
  expect(last).toMatchObject({ layers: 1, layersDone: 1, downloadedBytes: last?.totalBytes });
  const user = { username: registryUser.username, password: registryUser.password };
  const info = await images.ensure(named("team/app:1"), [user]);
  expect(info).toMatchObject({ imageRef: id, image: { uid: 1000, username: "", pinned: false } });
  expect(images.events.join()).toContain("already present on machine");
});

test("an image is known by its name, ID and digest, and under no other name", async () => {
  const id = await pull(named("team/app:1"));
  const info = await runtime.images.imageStatus(named("team/app:1"));
  expect(info).toMatchObject({ id, repoTags: [named("team/app:1")] });
  const [digest = ""] = info?.repoDigests ?? [];
  expect(digest).toMatch(/\/team\/app@sha256:[0-9a-f]{64}$/);
  const same = [id, id.slice("sha256:".length), digest, digest.replace("@", ":1@")];
  for (const name of same) expect(await runtime.images.imageStatus(name), name).toEqual(info);
  expect(await runtime.images.imageStatus(id.slice("sha256:".length, 19))).toBeUndefined();
  expect(await pull(digest)).toBe(id);

  const all = await runtime.images.listImages();
  expect(all.find((one) => one.id === id)).toEqual(info);
  const pinned = all.filter((one) => one.pinned).flatMap(({ repoTags }) => repoTags);
  expect(pinned).toEqual([pauseImageName]);
});

test("an image that is not in the registry, and a registry that is down, are told in one line", async () => {
  const missing = await images.failure(named("team/none:1"), [registryUser]);
  expect(missing.message).toMatch(/Error response from daemon: manifest for \S+\/team\/none:1 not found/);
  await registry.stop();
  const down = await images.failure(named("team/other:1"), [registryUser]);
  expect(down.message).toContain("connection refused");
  expect(down.message).not.toContain("\n");
  await registry.start();
});

test("an image in use stays with all its names; later all of them go, and once more is no error", async () => {
  await registry.push(await customImage({ name: named("team/old:1"), user: "77" }));
  const image = named("team/old:1");
  const id = await pull(image);
  await docker.api("POST", `/images/${id}/tag?repo=elsewhere.local/old&tag=2`);
  await docker.api("POST", "/containers/create?name=somebodys", { Image: image });
  await expect(runtime.images.removeImage(id)).rejects.toMatchObject({
    code: "Conflict",
    message: `remove image ${id}: it is in use by container somebodys (created); remove that first`,
  });
  const tags = (await runtime.images.imageStatus(id))?.repoTags ?? [];
  expect(tags.sort()).toEqual([image, "elsewhere.local/old:2"].sort());

  await docker.api("DELETE", "/containers/somebodys");
  await runtime.images.removeImage(id);
  for (const name of [id, ...tags]) expect(await runtime.images.imageStatus(name)).toBeUndefined();
  await runtime.images.removeImage(id);
  expect(await runtime.images.imageStatus(busyboxImageName)).toBeDefined();
});

test("the space of images is measured", async () => {
  const measured = async () => (await runtime.images.fsInfo()).imageFilesystems[0];
  await expect.poll(measured, { timeout: 20_000 }).toMatchObject({ inodesUsed: expect.any(Number) as number });
  const figures = await measured();
  expect(figures?.mountpoint).toContain(docker.node.dir);
  expect(figures?.usedBytes).toBeGreaterThan(1_000_000); // busybox alone
});

// A registry whose one layer comes slowly and without an end, as a program for Node.js.
const slowRegistry = `
  const { createHash } = require("node:crypto");
  const { createServer } = require("node:http");
  const diffID = "sha256:" + "c".repeat(64);
  const config = JSON.stringify({ architecture: "amd64", os: "linux", rootfs: { type: "layers", diff_ids: [diffID] } });
  const configDigest = "sha256:" + createHash("sha256").update(config).digest("hex");
  const type = (part) => "application/vnd.docker." + part;
  const manifest = JSON.stringify({
    schemaVersion: 2,
    mediaType: type("distribution.manifest.v2+json"),
    config: { mediaType: type("container.image.v1+json"), size: config.length, digest: configDigest },
    layers: [{ mediaType: type("image.rootfs.diff.tar.gzip"), size: 1e9, digest: "sha256:" + "b".repeat(64) }],
  });
  createServer((request, response) => {
    const isLayer = request.url.endsWith("b".repeat(64));
    const text = request.url.endsWith(configDigest) ? config : manifest;
    response.setHeader("content-type", text === config ? "application/octet-stream" : type("distribution.manifest.v2+json"));
    response.setHeader("content-length", isLayer ? 1e9 : text.length);
    if (!isLayer) return response.end(request.method === "HEAD" ? undefined : text);
    const dripping = setInterval(() => response.write("x".repeat(20000)), 50);
    response.on("close", () => clearInterval(dripping));
  }).listen(Number(process.argv[1]), "127.0.0.1");
`;

test("a slow pull ends in the daemon, too, when nobody wants it any more", async () => {
  const port = 5001; // on the loopback interface, which Docker trusts without TLS
  const { node } = docker;
  await node.start(process.execPath, ["-e", slowRegistry, `${port}`], { name: "slow-registry" });
  const sockets = async (...args: string[]) => (await node.exec("ss", ["-Htn", ...args])).stdout.trim();
  await expect.poll(async () => await sockets("-l", `( sport = :${port} )`), { timeout: 20_000 }).not.toBe("");
  const stop = new AbortController();
  const begun = Promise.withResolvers<void>();
  const outcome = pull(`127.0.0.1:${port}/app:1`, {
    signal: stop.signal,
    onProgress: ({ downloadedBytes }) => downloadedBytes > 0 && begun.resolve(),
  }).catch((err: unknown) => err);
  await Promise.race([begun.promise, outcome.then((err) => Promise.reject(err as Error))]);
  const connections = async () => await sockets("state", "established", `( dport = :${port} )`);
  expect(await connections()).not.toBe("");
  stop.abort();
  expect(await outcome).toMatchObject({ code: "Canceled" });
  await expect.poll(connections, { timeout: 20_000 }).toBe("");
});
