import { beforeEach, describe, expect, test } from "vitest";
import { AgentError } from "../../../../agent/lib/errors.ts";
import { silentLogger } from "../../../../agent/lib/log.ts";
import { sandboxLabels } from "../../../../agent/runtime/docker/labels.ts";
import { createCNINetwork } from "../../../../agent/runtime/docker/network.ts";
import { Sandboxes, type SandboxesOptions } from "../../../../agent/runtime/docker/sandboxes.ts";
import type { PodSandboxConfig } from "../../../../agent/runtime/port.ts";
import { ScriptedNode } from "../../cni/scripted-plugins.ts";
import { fakeDocker } from "./fake-docker.ts";

let stack: AsyncDisposableStack;
let node: ScriptedNode;
beforeEach(async () => {
  stack = new AsyncDisposableStack();
  node = stack.use(await ScriptedNode.create());
  await node.plugin("bridge");
  await node.network({ cniVersion: "1.0.0", name: "podnet", plugins: [{ type: "bridge" }] });
  return async () => stack.disposeAsync();
});

/** Sandbox `abc` on a daemon that says yes to everything, with scripted CNI plugins. */
async function sandbox({ annotations = {}, pid = process.pid }: { annotations?: object; pid?: number }) {
  const config = { name: "web", namespace: "shop", uid: "u", attempt: 0, labels: {}, annotations, portMappings: [] };
  const inspect = {
    Id: "abc",
    Name: "/k8s_POD_web_shop_u_0",
    Config: { Labels: sandboxLabels(config as unknown as PodSandboxConfig, "", "node-1") },
    HostConfig: { NetworkMode: "none" },
    State: pid === 0 ? { Status: "exited" } : { Running: true, Status: "running", Pid: pid },
  };
  const docker = stack.use(
    await fakeDocker(({ method, path }) => {
      if (method !== "GET") return {};
      return path === "/containers/json" ? [] : path === "/containers/abc/json" ? inspect : undefined;
    }),
  );
  const network = createCNINetwork(node.cni());
  const context = { nodeName: "node-1" };
  const options = { client: docker.client, context, network, log: silentLogger, removeContainer: async () => {} };
  const sandboxes = new Sandboxes(options as unknown as SandboxesOptions);
  const pod = { podName: "web", podNamespace: "shop", podUID: "u", portMappings: [], annotations: {} };
  const target = { containerID: "abc", netnsPath: "/proc/self/ns/net", ...pod };
  const changes = () => docker.requests.filter((request) => !request.startsWith("GET"));
  return { sandboxes, network, target, changes };
}

describe("a sandbox and its network", () => {
  test("a bandwidth annotation that is none keeps no pod from ending", async () => {
    const annotations = { "kubernetes.io/ingress-bandwidth": "fast" };
    const { sandboxes, network, target, changes } = await sandbox({ annotations });
    await expect(network.setUp({ ...target, annotations })).rejects.toMatchObject({ code: "Invalid" });
    await sandboxes.stop("abc");
    await sandboxes.remove("abc");
    expect(changes()).toEqual(["POST /containers/abc/stop", "DELETE /containers/abc"]);
  });

  test("what an ADD left half done is undone, though the sandbox's process has gone", async () => {
    const { sandboxes, network, target, changes } = await sandbox({ pid: 0 });
    await node.plugin("bridge", { ADD: "exit 1", DEL: "exit 1" });
    await expect(network.setUp(target)).rejects.toThrow("cleaning up failed too");
    expect(await network.isOnRecord("abc")).toBe(true);
    await expect(sandboxes.remove("abc")).rejects.toThrow(AgentError);
    expect(changes()).toEqual([]);
    await node.plugin("bridge");
    await sandboxes.remove("abc");
    expect(await node.records()).toEqual([]);
    expect(await network.isOnRecord("abc")).toBe(false);
    expect(changes()).toEqual(["DELETE /containers/abc"]);
  });

  test("one that has neither process nor record asks no plugin", async () => {
    const { sandboxes, changes } = await sandbox({ pid: 0 });
    await sandboxes.remove("abc");
    expect(await node.story()).toEqual([]);
    expect(changes()).toEqual(["DELETE /containers/abc"]);
  });
});
