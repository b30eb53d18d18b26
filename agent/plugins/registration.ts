import { AgentError } from "../lib/errors.ts";
import { type GRPCChannel, openChannel } from "../lib/grpc/channel.ts";
import { loadProto } from "../lib/grpc/proto.ts";
import type { PluginInfo } from "./port.ts";

// Kubelet's values: to connect, for GetInfo, for NotifyRegistrationStatus.
export const dialTimeoutMs = 10_000;
export const infoTimeoutMs = 1_000;
export const notifyTimeoutMs = 5_000;

/** What a plugin says on its registration socket. */
export interface AnnouncedPlugin extends PluginInfo {
  /** `CSIPlugin` …, or something that we do not know. */
  readonly type: string;
}

/** A conversation with one plugin on its registration socket. */
export interface RegistrationClient {
  /** Rejects with an `AgentError`: Unavailable if nobody listens, Invalid if the answer has no name. */
  info(signal: AbortSignal): Promise<AnnouncedPlugin>;
  /** Tells the plugin how its registration went; undefined: well. */
  notify(problem: string | undefined, signal: AbortSignal): Promise<void>;
  close(): void;
}

/** Opens the conversation; nothing is sent yet. Loads gRPC, so only for a socket that is there. */
export type OpenRegistration = (socketPath: string) => Promise<RegistrationClient>;

const service = "pluginregistration.Registration";

/** Talks to a real plugin. */
export const openRegistration: OpenRegistration = async (socketPath) => {
  const proto = await loadProto("pluginregistration.v1.proto");
  const channel: GRPCChannel = await openChannel(`unix://${socketPath}`);
  return {
    info: async (signal) => {
      const what = `ask the plugin at ${socketPath} who it is`;
      await channel.connect({ timeoutMs: dialTimeoutMs, what, signal });
      const settings = { timeoutMs: infoTimeoutMs, what, signal };
      const { type, name, endpoint, supported_versions } = await channel.call<WirePluginInfo>(
        proto,
        service,
        "GetInfo",
        {},
        settings,
      );
      if (name === "") throw new AgentError("Invalid", `${what}: it has no name`);
      return { type, name, endpoint: endpoint === "" ? socketPath : endpoint, supportedVersions: supported_versions };
    },
    notify: async (problem, signal) => {
      const request = { plugin_registered: problem === undefined, error: problem ?? "" };
      const what = `tell the plugin at ${socketPath} how its registration went`;
      await channel.call(proto, service, "NotifyRegistrationStatus", request, {
        timeoutMs: notifyTimeoutMs,
        what,
        signal,
      });
    },
    close: () => channel.close(),
  };
};

interface WirePluginInfo {
  type: string;
  name: string;
  endpoint: string;
  supported_versions: string[];
}
