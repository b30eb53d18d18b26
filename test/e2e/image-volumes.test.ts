import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { nodes } from "../../agent/kube/resources.ts";
import type { Container, Pod, Volume } from "../../agent/kube/types.ts";
import { imageMountSupport } from "../../agent/runtime/cri/image-mounts.ts";
import { isRunning, openNamespace, rejectionOf, runsDocker, type TestNamespace, until } from "./support/cluster.ts";
import { image, podOf, shell } from "./support/pods.ts";

const sleep = "trap 'exit 0' TERM; while true; do sleep 1 & wait $!; done";
// A name that no resolver has.
const unreachable = "registry.invalid/model:1";

let cluster: TestNamespace;
beforeAll(async () => {
  cluster = await openNamespace(inject("kubeconfig"));
});
afterAll(() => cluster[Symbol.asyncDispose]());

const statusOf = ({ status }: Pod, name: string) => status?.containerStatuses?.find((one) => one.name === name);
const model = (reference: string): Volume => ({ name: "model", image: { reference, pullPolicy: "IfNotPresent" } });

/** A pod of two containers, of which only `reader` mounts the volume. */
function podWith(name: string, volume: Volume, reader: Partial<Container> & { script?: string } = {}): Pod {
  const { script = sleep, ...more } = reader;
  const volumeMounts = [{ name: "model", mountPath: "/model" }];
  return podOf(name, [shell("reader", script, { volumeMounts, ...more }), shell("other", sleep)], {
    volumes: [volume],
    restartPolicy: "Always",
  });
}

/** Whether the runtime of the cluster's nodes mounts images, by what they say of it. */
async function mountsImages(): Promise<boolean> {
  const { items } = await cluster.client.list(nodes, {});
  const [, runtimeName = "", runtimeVersion = ""] =
    /^(.*):\/\/(.*)$/.exec(items[0]?.status?.nodeInfo?.containerRuntimeVersion ?? "") ?? [];
  const mount = { containerPath: "/model", image: { image: "", userSpecifiedImage: "" } };
  const mounts = [mount] as unknown as Parameters<typeof imageMountSupport>[1]["mounts"];
  const support = imageMountSupport({ runtimeName, runtimeVersion, runtimeApiVersion: "v1" }, { mounts });
  return support.refusal === undefined;
}

/** @returns true if that is said of a pod which needs what Docker cannot do */
async function isRejectedByDocker(name: string): Promise<boolean> {
  if (!(await runsDocker(cluster))) return false;
  expect(await rejectionOf(cluster, name)).toMatch(/^Failed: .* cannot run the pod: volume "model": .*Docker/);
  return true;
}

describe("an image volume", () => {
  test("that cannot be pulled holds up only the container that mounts it, which says so", async () => {
    await cluster.createPod(podWith("unpulled", model(unreachable)));
    if (await isRejectedByDocker("unpulled")) return;
    const isHeldUp = (pod: Pod) =>
      ["ErrImagePull", "ImagePullBackOff"].includes(statusOf(pod, "reader")?.state?.waiting?.reason ?? "");
    const pod = await cluster.waitForPod(
      "unpulled",
      "held up by its volume",
      (seen) => isHeldUp(seen) && statusOf(seen, "other")?.state?.running !== undefined,
    );
    expect(statusOf(pod, "reader")?.state?.waiting?.message).toMatch(/^volume "model": .*registry\.invalid/);
    await until("both events", async () => {
      const events = await cluster.eventsOf("unpulled");
      const has = (reason: string, message: string) =>
        events.some((event) => event.reason === reason && event.message?.startsWith(message) === true);
      return has("Failed", "Error: ErrImagePull") && has("Pulling", `Pulling image "${unreachable}"`);
    });
    const backing = await cluster.waitForPod(
      "unpulled",
      "backing off",
      (seen) => statusOf(seen, "reader")?.state?.waiting?.reason === "ImagePullBackOff",
    );
    expect(statusOf(backing, "reader")?.state?.waiting?.message).toMatch(
      /^volume "model": Back-off pulling image "registry\.invalid\/model:1": /,
    );
  });

  test("shows the image's files, or the container does not start and says what it lacks", async () => {
    const script = `ls -d /model/bin && ! touch /model/x && ${sleep}`;
    await cluster.createPod(podWith("mounted", model(image), { script }));
    if (await isRejectedByDocker("mounted")) return;
    if (await mountsImages()) {
      await cluster.waitForPod(
        "mounted",
        "running",
        (pod) => isRunning(pod) && statusOf(pod, "reader")?.ready === true,
      );
      return;
    }
    const pod = await cluster.waitForPod(
      "mounted",
      "refused",
      (seen) =>
        statusOf(seen, "reader")?.state?.waiting?.reason === "CreateContainerError" &&
        statusOf(seen, "other")?.state?.running !== undefined,
    );
    const { message = "" } = statusOf(pod, "reader")?.state?.waiting ?? {};
    expect(message).toMatch(/^\S+ \S+ cannot mount image volumes \(at \/model\): it needs \S+ [\d.]+ or later$/);
    const events = await until("the event", async () => {
      const found = (await cluster.eventsOf("mounted")).filter(({ reason }) => reason === "Failed");
      return found.length > 0 ? found : undefined;
    });
    expect(events[0]?.message).toBe(`Error: ${message}`);
    expect(statusOf(pod, "reader")?.containerID).toBeUndefined();
  });
});
