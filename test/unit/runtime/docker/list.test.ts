import { expect, test } from "vitest";
import { listPodObjects } from "../../../../agent/runtime/docker/list.ts";
import { Sandboxes } from "../../../../agent/runtime/docker/sandboxes.ts";
import { systemClock } from "../../../../agent/lib/clock.ts";
import { silentLogger } from "../../../../agent/lib/log.ts";
import type { SandboxNetwork } from "../../../../agent/runtime/docker/network.ts";
import { fakeDocker } from "./fake-docker.ts";

const labels = {
  "io.kubernetes.docker.type": "podsandbox",
  "io.kubernetes.pod.name": "web",
  "io.kubernetes.pod.namespace": "shop",
  "io.kubernetes.pod.uid": "u",
  "io.nodelet.keys": "[]",
};
const Name = "/k8s_POD_web_shop_u_0";
const nodeName = "node-1";
const network = { ips: async () => ["10.0.0.2"], tearDown: async () => {} } as unknown as SandboxNetwork;

test("a sandbox is ready while its process runs in the namespace that has its network, also if it is frozen", async () => {
  let State = "running";
  await using fake = await fakeDocker(() => [
    { Id: "s", Names: [Name], State, Labels: labels, HostConfig: { NetworkMode: "none" } },
  ]);
  const isReady = async (isLost: boolean) =>
    (await listPodObjects(fake.client, { ...network, isLost: () => isLost }, { nodeName })).sandboxes[0]?.ready;
  expect(await isReady(false)).toBe(true);
  expect(await isReady(true)).toBe(false);
  State = "paused";
  expect(await isReady(false)).toBe(true);
  State = "exited";
  expect(await isReady(false)).toBe(false);
});

test("an answer that is no list is an error that says so, not an end of the pods", async () => {
  await using fake = await fakeDocker(({ path }) =>
    path === "/containers/json" ? { message: "?" } : { Id: "s", Name, Config: { Labels: labels } },
  );
  const { client } = fake;
  const error = { code: "Internal", message: expect.stringContaining("is no list") as unknown };
  await expect(listPodObjects(client, { ...network, isLost: () => false }, { nodeName })).rejects.toMatchObject(error);
  const sandboxes = new Sandboxes({
    client,
    context: { daemon: client.daemon, nodeName: "node-1", oomScoreAdjMin: -1000, hasIPv6: true },
    network,
    pauseImage: { name: "pause", ensure: async () => {} },
    removeContainer: async () => {},
    requestTimeoutMs: 5_000,
    clock: systemClock,
    log: silentLogger,
  });
  await expect(sandboxes.stop("s")).rejects.toMatchObject(error);
  await expect(sandboxes.remove("s")).rejects.toMatchObject(error);
});
