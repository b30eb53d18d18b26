import { DefaultNetwork } from "../../cni/default-keeper.ts";
import type { KubeletConfiguration } from "../config/kubelet-config.ts";
import type { KubeletFlags } from "../config/kubelet-flags.ts";
import { quantityValue } from "../kube/quantity.ts";
import type { Clock } from "../lib/clock.ts";
import { AgentError } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import { socketTarget } from "../runtime/cri/client.ts";
import { connectCRI } from "../runtime/cri/connect.ts";
import { dockerSocket, isDockerSocket } from "../runtime/docker/endpoint.ts";
import { parseImageName } from "../runtime/images-name.ts";
import type { Runtime } from "../runtime/port.ts";
import { directoryUsage } from "../stats/directory-usage.ts";
import type { NodeCredentials } from "./kubelet-credentials.ts";

/** What of the settings says which runtime there is and how to use it. */
export interface RuntimeSettings {
  config: Pick<
    KubeletConfiguration,
    | "containerRuntimeEndpoint"
    | "imageServiceEndpoint"
    | "runtimeRequestTimeout"
    | "containerLogMaxSize"
    | "containerLogMaxFiles"
    | "streamingConnectionIdleTimeout"
  >;
  flags: Pick<
    KubeletFlags,
    "podInfraContainerImage" | "cniConfDir" | "cniBinDir" | "cniCacheDir" | "cniDefaultNetwork"
  >;
}

export interface OpenRuntimeDeps {
  nodeName: string;
  nodeCredentials: Pick<NodeCredentials, "find">;
  clock: Clock;
  log: Logger;
}

/**
 * Connects to what serves at the runtime endpoint, CRI or Docker: `docker://` says which, a socket is asked.
 * Rejects with Invalid for an endpoint that can never work; otherwise a later attempt may succeed.
 */
export async function openRuntime(settings: RuntimeSettings, deps: OpenRuntimeDeps): Promise<Runtime> {
  const { config, flags } = settings;
  const endpoint = config.containerRuntimeEndpoint;
  const socketPath = dockerSocket(endpoint) ?? (await dockerSocketAt(endpoint, deps));
  const runtime =
    socketPath === undefined ? await openCRI(settings, deps) : await openDocker(socketPath, settings, deps);
  return flags.cniDefaultNetwork ? withDefaultNetwork(runtime, flags, deps) : runtime;
}

async function dockerSocketAt(endpoint: string, { clock, log }: OpenRuntimeDeps): Promise<string | undefined> {
  const socketPath = socketTarget(endpoint).replace(/^unix:\/\//, "");
  if (!(await isDockerSocket(socketPath, clock))) return undefined;
  log.info({ endpoint }, "a Docker daemon answers at the runtime endpoint: using the Docker API");
  return socketPath;
}

async function openCRI({ config }: RuntimeSettings, { clock, log }: OpenRuntimeDeps): Promise<Runtime> {
  return await connectCRI({
    runtimeEndpoint: config.containerRuntimeEndpoint,
    imageEndpoint: config.imageServiceEndpoint,
    requestTimeoutMs: config.runtimeRequestTimeout,
    log,
    clock,
  });
}

async function openDocker(
  socketPath: string,
  { config, flags }: RuntimeSettings,
  { nodeName, nodeCredentials, clock, log }: OpenRuntimeDeps,
): Promise<Runtime> {
  const { containerRuntimeEndpoint: endpoint, imageServiceEndpoint: images } = config;
  if (images !== "" && images !== endpoint) {
    throw new AgentError(
      "Invalid",
      `imageServiceEndpoint "${images}": with Docker, images are the daemon's at ${endpoint}`,
    );
  }
  // Loaded only here: a node with CRI has no use for Docker's client.
  const { connectDocker } = await import("../runtime/docker/connect.ts");
  const pauseImage = flags.podInfraContainerImage;
  const pauseImageName = parseImageName(pauseImage);
  return await connectDocker({
    socketPath,
    nodeName,
    pauseImage,
    pauseImageCredentials: async () =>
      typeof pauseImageName === "string" ? [] : await nodeCredentials.find(undefined, pauseImageName.repository),
    logs: { maxSizeBytes: quantityValue(config.containerLogMaxSize), maxFiles: config.containerLogMaxFiles },
    cni: { confDir: flags.cniConfDir, binDirs: flags.cniBinDir, cacheDir: flags.cniCacheDir },
    measureTree: directoryUsage,
    requestTimeoutMs: config.runtimeRequestTimeout,
    streamingIdleMs: config.streamingConnectionIdleTimeout,
    log,
    clock,
  });
}

/** The same runtime, for which a network is described as soon as the node's pod addresses are known, and kept described. */
function withDefaultNetwork(runtime: Runtime, flags: RuntimeSettings["flags"], deps: OpenRuntimeDeps): Runtime {
  const network = new DefaultNetwork({ confDir: flags.cniConfDir, binDirs: flags.cniBinDir, ...deps });
  const updateRuntimeConfig = runtime.updateRuntimeConfig.bind(runtime);
  const close = runtime.close.bind(runtime);
  runtime.updateRuntimeConfig = async (config) => {
    await network.use(config.podCIDR.split(","));
    await updateRuntimeConfig(config);
  };
  runtime.close = async () => {
    await Promise.all([network.close(), close()]);
  };
  return runtime;
}
