import { readlink } from "node:fs/promises";
import type { Socket } from "node:net";
import { AgentError, messageOf } from "../../../lib/errors.ts";
import { createNamespaceDialer, type NamespaceDialer } from "../../../lib/namespace-dialer.ts";
import { dialLoopback } from "../../../lib/namespace-dialer-role.ts";
import type { DockerClient } from "../client.ts";
import type { Dial } from "./port-forward.ts";

/** The ways into sandboxes' networks. Sessions of one sandbox share one. */
export interface SandboxDialers {
  /** For one session. Rejects with AgentError if the sandbox does not run. */
  open(sandboxID: string, signal: AbortSignal): Promise<SandboxDialer>;
}

export interface SandboxDialer {
  readonly dial: Dial;
  /** The session is over. Call once. */
  release(): void;
}

export function createSandboxDialers(client: DockerClient): SandboxDialers {
  const shared = new Map<string, { dialer: NamespaceDialer; users: number }>();
  return {
    open: async (sandboxID, signal) => {
      const netnsPath = await networkNamespace(client, sandboxID, signal);
      // A pod on the host's network needs no helper.
      if ((await readlink(netnsPath)) === (await readlink("/proc/self/ns/net"))) {
        return { dial: async (port) => await dialHere(port), release: () => {} };
      }
      const entry = shared.get(netnsPath) ?? { dialer: createNamespaceDialer(netnsPath), users: 0 };
      shared.set(netnsPath, entry);
      entry.users += 1;
      return {
        dial: async (port, dialSignal) => await entry.dialer.dial(port, dialSignal),
        release: () => {
          entry.users -= 1;
          if (entry.users > 0) return;
          entry.dialer.close();
          shared.delete(netnsPath);
        },
      };
    },
  };
}

/** Rejects with NotFound or Conflict unless the sandbox runs. */
async function networkNamespace(client: DockerClient, sandboxID: string, signal: AbortSignal): Promise<string> {
  const container = client.docker.getContainer(sandboxID);
  const { State } = await client.call(
    `sandbox ${sandboxID}`,
    async (abortSignal) => await container.inspect({ abortSignal }),
    { signal },
  );
  if (!State.Running || State.Pid <= 0) throw new AgentError("Conflict", `sandbox ${sandboxID} is not running`);
  return `/proc/${State.Pid}/ns/net`;
}

async function dialHere(port: number): Promise<Socket> {
  return await dialLoopback(port).catch((err: unknown) => {
    throw new AgentError("Unavailable", messageOf(err), { cause: err });
  });
}
