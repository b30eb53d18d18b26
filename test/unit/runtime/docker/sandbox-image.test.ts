import { expect, test } from "vitest";
import { systemClock } from "../../../../agent/lib/clock.ts";
import { silentLogger } from "../../../../agent/lib/log.ts";
import type { SandboxNetwork } from "../../../../agent/runtime/docker/network.ts";
import { Sandboxes } from "../../../../agent/runtime/docker/sandboxes.ts";
import { sandbox } from "./config-support.ts";
import { answered, fakeDocker, sendJSON } from "./fake-docker.ts";

const labels = { "io.kubernetes.docker.type": "podsandbox", "io.kubernetes.pod.uid": "u", "io.nodelet.keys": "[]" };
const running = { Id: "s", State: { Running: true, Pid: 1 }, Config: { Labels: labels } };
const network = { setUp: async () => ({ ips: ["10.0.0.2"] }) } as unknown as SandboxNetwork;

/** A daemon that has the pause image, or gets it by a pull, or does not get it. */
async function run(daemon: { hasImage: boolean; pull?: () => Promise<void> }) {
  const asked: string[] = [];
  await using fake = await fakeDocker(({ method, path }, response) => {
    if (path !== "/containers/create") return method === "GET" ? running : {};
    if (daemon.hasImage) return { Id: "s" };
    sendJSON(response, 404, { message: "No such image: pause:latest" });
    return answered;
  });
  const { client } = fake;
  const sandboxes = new Sandboxes({
    client,
    context: { daemon: client.daemon, oomScoreAdjMin: -1000, hasIPv6: true },
    network,
    images: {
      imageStatus: async () => {
        asked.push("status");
        return undefined;
      },
      pullImage: async () => {
        asked.push("pull");
        await daemon.pull?.();
        return "";
      },
    },
    pauseImage: "pause",
    removeContainer: async () => {},
    requestTimeoutMs: 5_000,
    clock: systemClock,
    log: silentLogger,
  });
  const outcome = await sandboxes.run(sandbox({ dns: undefined }), "").catch((err: unknown) => err);
  return { asked, outcome };
}

test("a pause image that is there is not asked for before each pod", async () => {
  expect(await run({ hasImage: true })).toEqual({ asked: [], outcome: "s" });
});

test("a pause image that is not there, or not any more, is pulled", async () => {
  const daemon = {
    hasImage: false,
    pull: async () => {
      daemon.hasImage = true;
    },
  };
  expect(await run(daemon)).toEqual({ asked: ["status", "pull"], outcome: "s" });
});

test("a pause image that cannot be pulled is named", async () => {
  const pull = async () => await Promise.reject(new Error("no route to host"));
  const { outcome } = await run({ hasImage: false, pull });
  expect(outcome).toMatchObject({
    message: expect.stringMatching(/^pull image pause of the sandbox: no route/) as unknown,
  });
});
