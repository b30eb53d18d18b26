import { createCNI } from "../../cni/index.ts";
import { podArgs } from "../../cni/pod.ts";
import { systemClock } from "../../agent/lib/clock.ts";
import { silentLogger } from "../../agent/lib/log.ts";
import type { LocalCluster } from "../support/cluster/local-cluster.ts";
import { busyboxImageName, pauseImageName } from "../support/images/images.ts";
import { containerConfig, sandboxConfig } from "../support/runtime/configs.ts";
import { connectRuntime } from "../support/runtime/connect.ts";
import type { TestDocker } from "../support/runtime/docker.ts";

/** The runtime's own work for one pod, in calls that leave nothing out and do nothing else. */
export interface RawPods extends AsyncDisposable {
  /** "raw CRI run + create + start" */
  readonly what: { start: string; end: string };
  /** Starts a pod of one container, and ends it again. @returns how long either took, in ms */
  run(): Promise<[number, number]>;
}

/** On the cluster's runtime, behind the agent's back: pods that it does not know, and has to leave alone. */
export async function openRawPods(cluster: LocalCluster, command: string[]): Promise<RawPods> {
  return cluster.docker === undefined ? rawCRI(cluster, command) : await rawDocker(cluster.docker, command);
}

function rawCRI({ node }: LocalCluster, command: string[]): RawPods {
  return {
    what: { start: "raw CRI run + create + start", end: "raw CRI stop" },
    run: async () => {
      const runtime = await connectRuntime(node);
      const config = await sandboxConfig(node.dir, node.cgroupRoot);
      const container = await containerConfig(config, "main", busyboxImageName, command);
      let sandboxID = "";
      let containerID = "";
      const startMs = await timed(async () => {
        sandboxID = await runtime.runPodSandbox(config, "");
        containerID = await runtime.createContainer(sandboxID, container, config);
        await runtime.startContainer(containerID);
      });
      const endMs = await timed(async () => {
        await runtime.stopContainer(containerID, 30);
        await runtime.stopPodSandbox(sandboxID);
      });
      await runtime.removeContainer(containerID);
      await runtime.removePodSandbox(sandboxID);
      await runtime.close();
      return [startMs, endMs];
    },
    [Symbol.asyncDispose]: async () => {},
  };
}

async function rawDocker(docker: TestDocker, command: string[]): Promise<RawPods> {
  const { node, cni: directories } = docker;
  const cni = createCNI({ ...directories, log: silentLogger, clock: systemClock });
  const post = async (path: string, body?: unknown) =>
    (await docker.api("POST", path, body)) as { Id: string; State: { Pid: number } };
  const create = async (body: object, hostConfig: object) =>
    (await post("/containers/create", { ...body, HostConfig: { ...hostConfig, CgroupParent: node.cgroupRoot } })).Id;
  return {
    what: {
      start: "raw Docker create + start pause, CNI ADD, create + start container",
      end: "raw Docker stop, CNI DEL",
    },
    run: async () => {
      let pause = "";
      let main = "";
      let target = { containerID: "", netnsPath: "", args: podArgs(noPod), capabilities: {} };
      const startMs = await timed(async () => {
        pause = await create({ Image: pauseImageName }, { NetworkMode: "none", IpcMode: "shareable" });
        await post(`/containers/${pause}/start`);
        const { State } = (await docker.api("GET", `/containers/${pause}/json`)) as { State: { Pid: number } };
        target = { ...target, containerID: pause, netnsPath: `/proc/${State.Pid}/ns/net` };
        await cni.add(target);
        const shared = `container:${pause}`;
        main = await create({ Image: busyboxImageName, Entrypoint: command }, { NetworkMode: shared, IpcMode: shared });
        await post(`/containers/${main}/start`);
      });
      const endMs = await timed(async () => {
        await post(`/containers/${main}/stop?t=30`);
        await cni.del(target);
        await post(`/containers/${pause}/stop?t=0`);
      });
      for (const id of [main, pause]) await docker.api("DELETE", `/containers/${id}?force=1&v=1`);
      return [startMs, endMs];
    },
    [Symbol.asyncDispose]: async () => await cni.close(),
  };
}

const noPod = {
  podName: "raw",
  podNamespace: "default",
  podUID: "raw",
  containerID: "",
  portMappings: [],
  annotations: {},
};

/** @returns how long the work took, in ms */
export async function timed(work: () => Promise<void>): Promise<number> {
  const begin = performance.now();
  await work();
  return performance.now() - begin;
}
