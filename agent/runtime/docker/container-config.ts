import { AgentError } from "../../lib/errors.ts";
import type { ContainerConfig, NamespaceOptions, PodSandboxConfig } from "../port.ts";
import {
  cgroupParent,
  commonHostConfig,
  type ContextOfDaemon,
  type CreateBody,
  type LogConfig,
  noHealthcheck,
} from "./create-body.ts";
import { dockerDevices } from "./devices.ts";
import { containerLabels } from "./labels.ts";
import { dockerMounts } from "./mounts.ts";
import { containerName } from "./names.ts";
import { noUserNamespaces } from "./refusals.ts";
import { cgroupWrites, dockerResources, oomScoreAdj } from "./resources.ts";
import { containerSecurity, containerUser } from "./security.ts";

/** What a container's description takes beside its configuration. */
export interface ContainerInputs {
  logConfig: LogConfig;
  /** Text of the Localhost profile, see `readSeccompProfile`. */
  seccompProfile: string | undefined;
  /** The sandbox's: all containers of a pod run under one OCI runtime. */
  runtimeHandler: string;
}

/**
 * How Docker is to make an app container inside a sandbox. Throws Invalid or Unimplemented, naming container and cause, for
 * what Docker cannot give it. Pure.
 */
export function containerCreateBody(
  sandboxID: string,
  config: ContainerConfig,
  sandbox: PodSandboxConfig,
  context: ContextOfDaemon,
  inputs: ContainerInputs,
): CreateBody {
  const what = `container ${config.name} in pod ${sandbox.namespace}/${sandbox.name}`;
  const { daemon } = context;
  const { securityContext: security, resources } = config;
  cgroupWrites(what, resources, daemon.cgroupVersion); // refused now, not when the container runs
  const user = containerUser(what, security);
  return {
    name: containerName(config, sandbox),
    Image: config.imageRef,
    Labels: containerLabels(sandboxID, config, sandbox, context.nodeName),
    Healthcheck: noHealthcheck,
    ...commandOf(config),
    Env: environment(what, config.envs),
    ...(config.workingDir === "" ? {} : { WorkingDir: config.workingDir }),
    ...(user === undefined ? {} : { User: user }),
    ...(config.stopSignal === undefined ? {} : { StopSignal: config.stopSignal }),
    Tty: config.tty,
    OpenStdin: config.stdin,
    StdinOnce: config.stdin && config.stdinOnce,
    AttachStdin: false,
    AttachStdout: false,
    AttachStderr: false,
    HostConfig: {
      ...commonHostConfig,
      ...containerSecurity(what, security, daemon, inputs.seccompProfile),
      ...namespacesOf(what, sandboxID, security.namespaceOptions),
      CgroupnsMode: daemon.cgroupVersion === 2 && !security.privileged ? "private" : "host",
      ...(sandbox.cgroupParent === "" ? {} : { CgroupParent: cgroupParent(sandbox.cgroupParent, daemon) }),
      ...(inputs.runtimeHandler === "" ? {} : { Runtime: inputs.runtimeHandler }),
      ...dockerResources(what, resources),
      OomScoreAdj: oomScoreAdj(resources.oomScoreAdj ?? 0, context),
      ...dockerDevices(what, config, daemon),
      ...dockerMounts(what, config.mounts, context),
      LogConfig: inputs.logConfig,
    },
  };
}

// Empty lists are left out, so that the image's hold; with an entry point given Docker forgets the image's arguments.
function commandOf({ command, args }: ContainerConfig): Pick<CreateBody, "Entrypoint" | "Cmd"> {
  return {
    ...(command.length === 0 ? {} : { Entrypoint: [...command] }),
    ...(args.length === 0 ? {} : { Cmd: [...args] }),
  };
}

/** Of two with one name the later wins. Values stay out of messages: they may be secret. */
function environment(what: string, envs: ContainerConfig["envs"]): string[] {
  const refuse = (why: string): never => {
    throw new AgentError("Invalid", `${what}: environment variable ${why}`);
  };
  const byName = new Map<string, string>();
  for (const { key, value } of envs) {
    if (key === "" || key.includes("=") || key.includes("\0")) refuse(`${JSON.stringify(key)} has no usable name`);
    if (typeof value !== "string") return refuse(`"${key}" is no UTF-8 text, and Docker takes nothing else`);
    if (value.includes("\0")) refuse(`"${key}" contains a zero byte`);
    byName.set(key, value);
  }
  return [...byName].map(([key, value]) => `${key}=${value}`);
}

function namespacesOf(
  what: string,
  sandboxID: string,
  namespaces: NamespaceOptions,
): Pick<CreateBody["HostConfig"], "NetworkMode" | "IpcMode" | "PidMode" | "UTSMode"> {
  if (namespaces.userns?.mode === "POD") throw noUserNamespaces(what);
  const ofSandbox = `container:${sandboxID}`;
  return {
    // Also on the node's network: with the sandbox's namespace comes its resolv.conf.
    NetworkMode: ofSandbox,
    ...(namespaces.network === "NODE" ? { UTSMode: "host" } : {}),
    // The node's cannot be had by way of another container: Docker asks for a /dev/shm of that one's own.
    IpcMode: namespaces.ipc === "NODE" ? "host" : ofSandbox,
    ...pidMode(what, ofSandbox, namespaces),
  };
}

function pidMode(what: string, ofSandbox: string, { pid, targetID }: NamespaceOptions): { PidMode?: string } {
  switch (pid) {
    case "NODE":
      return { PidMode: "host" };
    case "POD":
      return { PidMode: ofSandbox };
    case "CONTAINER":
      return {};
    case "TARGET":
      if (targetID === "") {
        throw new AgentError("Invalid", `${what}: the container whose processes it is to see is not named`);
      }
      return { PidMode: `container:${targetID}` };
    default:
      return pid satisfies never;
  }
}
