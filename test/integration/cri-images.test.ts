import { afterAll, beforeAll, beforeEach, expect, test } from "vitest";
import type { Secret } from "../../agent/kube/types.ts";
import { authsFor, keyringFromSecrets } from "../../agent/runtime/images-auth.ts";
import type { PodSandboxConfig, Runtime } from "../../agent/runtime/port.ts";
import { customImage } from "../support/images/images.ts";
import { createTestNode, type TestNode } from "../support/node/node.ts";
import { registryUser, startRegistry, type TestRegistry } from "../support/node/registry.ts";
import { sandboxConfig } from "../support/runtime/configs.ts";
import { connectRuntime } from "../support/runtime/connect.ts";
import { recordedImages } from "../support/runtime/recorded-images.ts";

let node: TestNode;
let registry: TestRegistry;
let runtime: Runtime;
let sandbox: PodSandboxConfig;
let images: ReturnType<typeof recordedImages>;

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
  images = recordedImages(runtime.images, sandbox);
});

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
    const err = await images.failure(image, auths);
    expect(err.reason).toBe("ErrImagePull");
    expect(err.message).toContain("private.local/team/app:1");
    expect(err.message).toMatch(/401|authorization/);
    expect(err.retryAtMs).toBeGreaterThan(Date.now());
    expect(images.events.join()).not.toContain("wr0ng");
    images.forget();
  }
});

test("the pod's pull secret gets it", async () => {
  const image = "private.local/team/app:1";
  const { keyring } = keyringFromSecrets([secretFor("https://private.local/v1/", registryUser)]);
  const { imageRef, image: info } = await images.ensure(image, authsFor(image, [keyring]));
  expect(info?.id).toBe(imageRef);
  expect(images.events[0]).toBe(`Normal Pulling: Pulling image "${image}"`);
  expect(images.events[1]).toMatch(
    /^Normal Pulled: Successfully pulled image ".*" in \d+ms \(\d+ms including waiting\)\. Image size: \d{6,} bytes\.$/,
  );
  expect(await images.ensure(image, [])).toMatchObject({ imageRef });
  expect(images.events[2]).toContain("already present on machine");
  const [credential] = authsFor(image, [keyring]);
  expect(credential?.secret).toEqual({ uid: "", namespace: "default", name: "pull" });
});

test("an image appears after its first pull failed: the next attempt has it", async () => {
  const image = "private.local/team/late:1";
  const err = await images.failure(image, [registryUser]);
  expect(err.message).toMatch(/^rpc error: code = NotFound desc = .*late:1.* not found$/);
  await registry.push(await customImage({ name: image }));
  const waiting = await images.failure(image, [registryUser]);
  expect(waiting.reason).toBe("ImagePullBackOff");
  expect(Math.abs((waiting.retryAtMs ?? 0) - (err.retryAtMs ?? 0))).toBeLessThan(100);
  images.forget(); // stands for the 10 s to pass
  expect(await images.ensure(image, [registryUser])).toMatchObject({
    imageRef: expect.stringMatching(/^sha256:/) as string,
  });
});

test("a registry that is down is told in one line", async () => {
  await registry.stop();
  const err = await images.failure("private.local/team/other:1", [registryUser]);
  expect(err.message).toContain("connection refused");
  expect(err.message).not.toContain("\n");
  await registry.start();
});
