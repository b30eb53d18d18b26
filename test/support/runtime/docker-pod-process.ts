import { silentLogger } from "../../../agent/lib/log.ts";
import { type ConnectDockerOptions, connectDocker } from "../../../agent/runtime/docker/connect.ts";
import type { PodSandboxConfig } from "../../../agent/runtime/port.ts";
import { directoryUsage } from "../../../agent/stats/directory-usage.ts";
import { busyboxImageName, pauseImageName } from "../images/images.ts";
import { containerConfig } from "./configs.ts";

/** What the process is given, as JSON in its only argument. */
export interface DockerPodOptions {
  docker: Pick<ConnectDockerOptions, "socketPath" | "cni">;
  config: PodSandboxConfig;
}

// An agent as far as it starts one pod; a process of its own, so that a test can kill it on its way. Then it waits for that.

const { docker, config } = JSON.parse(process.argv[2] ?? "") as DockerPodOptions;
const runtime = await connectDocker({
  nodeName: "node-1",
  ...docker,
  pauseImage: pauseImageName,
  logs: { maxSizeBytes: 10 << 20, maxFiles: 5 },
  measureTree: directoryUsage,
  requestTimeoutMs: 120_000,
  log: silentLogger,
});
const sandboxID = await runtime.runPodSandbox(config, "");
const container = await containerConfig(config, "app", busyboxImageName, ["sleep", "1000"]);
const containerID = await runtime.createContainer(sandboxID, container, config);
await runtime.startContainer(containerID);
await new Promise((resolve) => process.stdin.once("end", resolve).resume());
