import { describe, expect, test } from "vitest";
import { systemClock } from "../../../../agent/lib/clock.ts";
import { AgentError } from "../../../../agent/lib/errors.ts";
import { silentLogger } from "../../../../agent/lib/log.ts";
import { sandboxLabels } from "../../../../agent/runtime/docker/labels.ts";
import { sandboxName } from "../../../../agent/runtime/docker/names.ts";
import type { SandboxNetwork } from "../../../../agent/runtime/docker/network.ts";
import { createPauseImage } from "../../../../agent/runtime/docker/pause-image.ts";
import { Sandboxes } from "../../../../agent/runtime/docker/sandboxes.ts";
import type { ImageCredential } from "../../../../agent/runtime/images-auth.ts";
import type { ImageService } from "../../../../agent/runtime/port.ts";
import { info } from "../images-support.ts";
import { context, sandbox } from "./config-support.ts";
import { answered, fakeDocker, sendJSON } from "./fake-docker.ts";

const config = sandbox({ dns: undefined });
const running = {
  Id: "s",
  Name: `/${sandboxName(config)}`,
  State: { Running: true, Pid: 1 },
  Config: { Labels: sandboxLabels(config, "", "node-1") },
};
const network = { setUp: async () => ({ ips: ["10.0.0.2"] }) } as unknown as SandboxNetwork;

/** Images of which the pause image comes by a pull with one of the passwords that are good; "": anonymously. */
function fakeImages(good: readonly string[], isThere = false) {
  const asked: string[] = [];
  const has = { pause: isThere };
  const images: Pick<ImageService, "imageStatus" | "pullImage"> = {
    imageStatus: async () => {
      asked.push("status");
      return has.pause ? info("sha256:p") : undefined;
    },
    pullImage: async (_image, { auth }) => {
      const password = auth?.password ?? "";
      asked.push(`pull ${password}`.trim());
      if (!good.includes(password)) throw new AgentError("Internal", "pull image pause: no basic auth credentials");
      has.pause = true;
      return "sha256:p";
    },
  };
  return { asked, has, images };
}

function pauseImage(images: Pick<ImageService, "imageStatus" | "pullImage">, credentials: ImageCredential[] = []) {
  return createPauseImage({
    image: "pause",
    images,
    credentials: async () => credentials,
    clock: systemClock,
    log: silentLogger,
  });
}

/** A daemon that has the pause image, or gets it by a pull, or does not get it. */
async function run({ asked, has, images }: ReturnType<typeof fakeImages>, credentials: ImageCredential[] = []) {
  await using fake = await fakeDocker(({ method, path }, response) => {
    if (path !== "/containers/create") return method === "GET" ? running : {};
    if (has.pause) return { Id: "s" };
    sendJSON(response, 404, { message: "No such image: pause:latest" });
    return answered;
  });
  const sandboxes = new Sandboxes({
    client: fake.client,
    context: context(),
    network,
    pauseImage: pauseImage(images, credentials),
    removeContainer: async () => {},
    requestTimeoutMs: 5_000,
    clock: systemClock,
    log: silentLogger,
  });
  const outcome = await sandboxes.run(config, "").catch((err: unknown) => err);
  return { asked, outcome };
}

test("a pause image that is there is not asked for before each pod", async () => {
  expect(await run(fakeImages([], true))).toEqual({ asked: [], outcome: "s" });
});

describe("a pause image that is not there, or not any more, is pulled", () => {
  test("anonymously, if the node has nothing for it", async () => {
    expect(await run(fakeImages([""]))).toEqual({ asked: ["status", "pull", "status"], outcome: "s" });
  });

  test("with what the node has for it, one after the other", async () => {
    const credentials = [{ password: "old" }, { password: "good" }];
    const { asked, outcome } = await run(fakeImages(["good"]), credentials);
    expect(asked).toEqual(["status", "pull old", "pull good", "status"]);
    expect(outcome).toBe("s");
  });

  test("anonymously at last: what the node has may be out of date, and the image everybody's", async () => {
    const { asked, outcome } = await run(fakeImages([""]), [{ password: "old" }]);
    expect(asked).toEqual(["status", "pull old", "pull", "status"]);
    expect(outcome).toBe("s");
  });

  test("once for all pods that come together", async () => {
    const { asked, images } = fakeImages(["good"]);
    const image = pauseImage(images, [{ password: "good" }]);
    const { signal } = new AbortController();
    await Promise.all([1, 2, 3].map(async () => await image.ensure(config, signal)));
    expect(asked.filter((what) => what.startsWith("pull"))).toEqual(["pull good"]);
  });

  test("and if that fails the pod hears why, without what was tried", async () => {
    const { outcome } = await run(fakeImages([]), [{ username: "u", password: "wr0ng" }]);
    expect(outcome).toMatchObject({ message: "image of the sandbox: pull image pause: no basic auth credentials" });
  });

  test("until no pod wants it any more", async () => {
    const { images } = fakeImages([]);
    const asked = Promise.withResolvers<AbortSignal | undefined>();
    const image = pauseImage({
      ...images,
      pullImage: async (_image, { signal }) => {
        asked.resolve(signal);
        return await new Promise<never>(() => {});
      },
    });
    const pods = [new AbortController(), new AbortController()];
    const outcomes = pods.map(async ({ signal }) => await image.ensure(config, signal).catch((err: unknown) => err));
    const pull = await asked.promise;
    pods[0]?.abort();
    expect(await outcomes[0]).toMatchObject({ code: "Canceled" });
    expect(pull?.aborted).toBe(false);
    pods[1]?.abort();
    expect(await outcomes[1]).toMatchObject({ code: "Canceled" });
    expect(pull?.aborted).toBe(true);
  });
});
