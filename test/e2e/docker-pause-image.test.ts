import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { customImage } from "../support/images/images.ts";
import { registryUser, startRegistry } from "../support/node/registry.ts";
import { isReady, until } from "./support/cluster.ts";
import { type BreakableCluster, openBreakableCluster, restartAgent } from "./support/local.ts";
import { sleeperOf } from "./support/pods.ts";

describe.skipIf(!inject("isLocal"))("a pause image in a private registry, with Docker", () => {
  let env: BreakableCluster;
  let pauseImage = "";

  beforeAll(async () => {
    const flags: string[] = [];
    env = await openBreakableCluster({}, flags, {
      runtime: "docker",
      // Before the agent starts, and when the daemon's address is known.
      endpointFor: async ({ endpoint, registryName }) => {
        pauseImage = `${registryName("private.local")}/node/pause:1`;
        flags.push("--pod-infra-container-image", pauseImage);
        return endpoint;
      },
    });
    const { node } = env.local;
    const name = pauseImage.replace(/\/.*/, "");
    const registry = await startRegistry(node, { name, withCredentials: true });
    await registry.push(await customImage({ name: pauseImage, cmd: ["sleep", "100000"] }));
  });
  afterAll(() => env?.[Symbol.asyncDispose]());

  test("does not come without credentials, which the pod tells; with the node's own its pods run", async () => {
    const { cluster, local } = env;
    await cluster.createPod(sleeperOf("first"));
    const event = await until("the pod tells why", async () =>
      (await cluster.eventsOf("first")).find(({ reason }) => reason === "FailedCreatePodSandBox"),
    );
    expect(event.message).toMatch(/image of the sandbox: pull image \S+\/node\/pause:1: .*(credentials|unauthorized)/);
    const auths = { [pauseImage.replace(/\/pause.*/, "")]: registryUser };
    await writeFile(join(local.rootDir, "config.json"), JSON.stringify({ auths }));
    // It is read again after five minutes, or by the next agent.
    await restartAgent(env, "SIGTERM");
    await cluster.waitForPod("first", "ready", isReady);
    await cluster.deletePod("first");
    await cluster.waitForPodGone("first");
  });
});
