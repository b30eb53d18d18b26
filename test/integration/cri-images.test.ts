import { afterAll, beforeAll, beforeEach, expect, test } from "vitest";
import type { Pod, Secret } from "../../agent/kube/types.ts";
import { systemClock } from "../../agent/lib/clock.ts";
import { silentLogger } from "../../agent/lib/log.ts";
import { createImageManager, type ImageManager, ImagePullError } from "../../agent/runtime/images.ts";
import { authsFor, keyringFromSecrets } from "../../agent/runtime/images-auth.ts";
import type { ImageAuth, PodSandboxConfig, Runtime } from "../../agent/runtime/port.ts";
import { customImage } from "../support/images/images.ts";
import { createTestNode, type TestNode } from "../support/node/node.ts";
import { registryUser, startRegistry, type TestRegistry } from "../support/node/registry.ts";
import { sandboxConfig } from "../support/runtime/configs.ts";
import { connectRuntime } from "../support/runtime/connect.ts";

let node: TestNode;
let registry: TestRegistry;
let runtime: Runtime;
let manager: ImageManager;
let sandbox: PodSandboxConfig;
let events: string[];
const never = new AbortController().signal;
const pod: Pod = { metadata: { name: "web", namespace: "default", uid: "u1" }, spec: { containers: [] } };

beforeAll(async () => {
  node = await createTestNode();
  registry = await startRegistry(node, { name: "private.local", withCredentials: true });
  runtime = await connectRuntime(node);
  sandbox = await sandboxConfig(node.dir, node.cgroupRoot);
  await registry.push(await customImage({ name: "private.local/team/app:1" }));
});
afterAll(async () => {
  await runtime?.close();
  await node?.destroy();
});
beforeEach(() => {
  events = [];
  manager = createImageManager({
    images: runtime.images,
    clock: systemClock,
    log: silentLogger,
    onEvent: (_pod, _container, type, reason, message) => events.push(`${type} ${reason}: ${message}`),
    serializeImagePulls: true,
    registryPullQPS: 5,
    registryBurst: 10,
  });
});

const ensure = async (image: string, auths: ImageAuth[]) =>
  await manager.ensureImage(pod, { name: "c", image }, sandbox, auths, never);

const secretFor = (registryName: string, user: typeof registryUser): Secret => ({
  metadata: { name: "pull", namespace: "default" },
  type: "kubernetes.io/dockerconfigjson",
  data: {
    ".dockerconfigjson": Buffer.from(
      JSON.stringify({ auths: { [registryName]: { auth: btoa(`${user.username}:${user.password}`) } } }),
    ).toString("base64"),
  },
});

test("without credentials, or with wrong ones, a private image does not come, and nothing secret is told", async () => {
  const image = "private.local/team/app:1";
  for (const auths of [[], [{ username: "puller", password: "wr0ng" }]]) {
    const err: unknown = await ensure(image, auths).catch((e: unknown) => e);
    if (!(err instanceof ImagePullError)) throw err;
    expect(err.reason).toBe("ErrImagePull");
    expect(err.message).toContain("private.local/team/app:1");
    expect(err.message).toMatch(/401|authorization/);
    expect(err.retryAtMs).toBeGreaterThan(Date.now());
    expect(events.join()).not.toContain("wr0ng");
    manager.forgetPod("u1");
  }
});

test("the pod's pull secret gets it", async () => {
  const image = "private.local/team/app:1";
  const { keyring } = keyringFromSecrets([secretFor("https://private.local/v1/", registryUser)]);
  const { imageRef, image: info } = await ensure(image, authsFor(image, [keyring]));
  expect(info?.id).toBe(imageRef);
  expect(events[0]).toBe(`Normal Pulling: Pulling image "${image}"`);
  expect(events[1]).toMatch(
    /^Normal Pulled: Successfully pulled image ".*" in \d+ms \(\d+ms including waiting\)\. Image size: \d{6,} bytes\.$/,
  );
  expect(await ensure(image, [])).toMatchObject({ imageRef });
  expect(events[2]).toContain("already present on machine");
  const [credential] = authsFor(image, [keyring]);
  expect(credential?.secret).toEqual({ uid: "", namespace: "default", name: "pull" });
});

test("an image appears after its first pull failed: the next attempt has it", async () => {
  const image = "private.local/team/late:1";
  const err: unknown = await ensure(image, [registryUser]).catch((e: unknown) => e);
  if (!(err instanceof ImagePullError)) throw err;
  expect(err.message).toMatch(/^rpc error: code = NotFound desc = .*late:1.* not found$/);
  await registry.push(await customImage({ name: image }));
  const waiting: unknown = await ensure(image, [registryUser]).catch((e: unknown) => e);
  if (!(waiting instanceof ImagePullError)) throw waiting;
  expect(waiting.reason).toBe("ImagePullBackOff");
  expect(Math.abs((waiting.retryAtMs ?? 0) - (err.retryAtMs ?? 0))).toBeLessThan(100);
  manager.forgetPod("u1"); // stands for the 10 s to pass
  expect(await ensure(image, [registryUser])).toMatchObject({ imageRef: expect.stringMatching(/^sha256:/) as string });
});

test("a registry that is down is told in one line", async () => {
  await registry.stop();
  const err: unknown = await ensure("private.local/team/other:1", [registryUser]).catch((e: unknown) => e);
  if (!(err instanceof ImagePullError)) throw err;
  expect(err.message).toContain("connection refused");
  expect(err.message).not.toContain("\n");
  await registry.start();
});
