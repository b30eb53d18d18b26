import { type FileHandle, open, readFile, stat } from "node:fs/promises";
import type { Socket } from "node:net";
import { join } from "node:path";
import { ignoreErrno } from "../../../lib/errno.ts";
import { AgentError, messageOf } from "../../../lib/errors.ts";
import { createNamespaceDialer, type NamespaceDialer } from "../../../lib/namespace-dialer.ts";
import { dialLoopback } from "../../../lib/namespace-dialer-role.ts";
import type { DockerClient } from "../client.ts";
import { inspectContainer } from "../create.ts";
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

/** @param procDir "/proc" but in tests */
export function createSandboxDialers(client: DockerClient, procDir = "/proc"): SandboxDialers {
  // By sandbox and process: a session may idle for hours after its sandbox has ended, and another gets the number meanwhile.
  const shared = new Map<string, { namespace: FileHandle; dialer: NamespaceDialer; users: number }>();
  return {
    open: async (sandboxID, signal) => {
      const pid = await processOf(client, sandboxID, signal);
      const namespace = await openNetworkNamespace(procDir, pid, sandboxID);
      // A pod on the host's network needs no helper.
      if (await isOwn(namespace)) {
        await namespace.close();
        return { dial: async (port) => await dialHere(port), release: () => {} };
      }
      const key = `${sandboxID} ${pid}`;
      const known = shared.get(key);
      // Its helpers find it by our descriptor, which stays what it is when the process ends.
      const entry = known ?? {
        namespace,
        dialer: createNamespaceDialer(`/proc/${process.pid}/fd/${namespace.fd}`),
        users: 0,
      };
      shared.set(key, entry);
      entry.users += 1;
      if (known !== undefined) await namespace.close();
      return {
        dial: async (port, dialSignal) => await entry.dialer.dial(port, dialSignal),
        release: () => {
          entry.users -= 1;
          if (entry.users > 0) return;
          shared.delete(key);
          entry.dialer.close();
          void entry.namespace.close();
        },
      };
    },
  };
}

/** Rejects with NotFound or Conflict unless the sandbox runs. */
async function processOf(client: DockerClient, sandboxID: string, signal: AbortSignal): Promise<number> {
  const { State } = await inspectContainer(client, `sandbox ${sandboxID}`, sandboxID, { signal });
  const pid = State?.Running === true ? (State.Pid ?? 0) : 0;
  if (pid <= 0) throw notRunning(sandboxID);
  return pid;
}

/** Rejects with Conflict if the process is not the sandbox's any more. */
async function openNetworkNamespace(procDir: string, pid: number, sandboxID: string): Promise<FileHandle> {
  const process = join(procDir, String(pid));
  const namespace = await open(join(process, "ns/net")).catch(ignoreErrno("ENOENT", "ESRCH"));
  if (namespace === undefined) throw notRunning(sandboxID);
  // Asked after the namespace was opened: whose process it is now, it was before.
  const cgroups = await readFile(join(process, "cgroup"), "utf8").catch(() => "");
  if (cgroups.includes(sandboxID)) return namespace;
  await namespace.close();
  throw notRunning(sandboxID);
}

function notRunning(sandboxID: string): AgentError {
  return new AgentError("Conflict", `sandbox ${sandboxID} is not running`);
}

async function isOwn(namespace: FileHandle): Promise<boolean> {
  const [theirs, own] = await Promise.all([namespace.stat(), stat("/proc/self/ns/net")]);
  return theirs.dev === own.dev && theirs.ino === own.ino;
}

async function dialHere(port: number): Promise<Socket> {
  return await dialLoopback(port).catch((err: unknown) => {
    throw new AgentError("Unavailable", messageOf(err), { cause: err });
  });
}
