import { expect, test } from "vitest";
import { settle } from "../kube/fake-clock.ts";
import { ScriptedNode } from "./scripted-node.ts";
import { podOf } from "./support.ts";

test.each(["labels", "annotations"] as const)(
  "a container that could not be made is tried at once when the pod's %s change: its variables may come from them",
  async (field) => {
    await using node = new ScriptedNode();
    node.fail("StartContainer", 100);
    await node.start(podOf());
    await node.clock.advance(40_000);
    expect(node.isRunning("app")).toBe(false);
    node.fail("StartContainer", 0);
    const pod = node.pod("web");
    await node.update({ ...pod, metadata: { ...pod.metadata, [field]: { dir: "there" } } });
    await settle();
    expect(node.isRunning("app")).toBe(true);
  },
);
