import { messageOf } from "../../lib/errors.ts";
import { isObject } from "../../lib/json.ts";
import type { Logger } from "../../lib/log.ts";
import { isPlainRuntime } from "../plain-runtimes.ts";
import type { RuntimeCalls } from "./calls.ts";

/** Whether the default handler's containers are plain processes, see `Runtime.hasPlainContainers`. */
export interface PlainContainers {
  /** False while it is not known. */
  readonly isKnown: boolean;
  /** Asks the runtime anew, which may have another configuration since its restart. Never rejects. */
  learn(): Promise<void>;
}

export function createPlainContainers(calls: Pick<RuntimeCalls, "call">, log: Logger): PlainContainers {
  let isKnown = false;
  return {
    get isKnown() {
      return isKnown;
    },
    learn: async () => {
      isKnown = false;
      const what = "runtime status with its configuration";
      try {
        const { info } = await calls.call<{ info: Readonly<Record<string, string>> }>(
          "Status",
          { verbose: true },
          what,
        );
        isKnown = isDefaultPlain(info["config"] ?? "");
      } catch (err) {
        log.debug({ err: messageOf(err) }, "the runtime's default handler is not known: volumes wait for sandboxes");
      }
    },
  };
}

// A pod may ask for this one by an annotation: its handler does not show then.
const untrusted = "untrusted";

// containerd's own shims for runc and what is called as it is.
const runcShims: readonly unknown[] = ["io.containerd.runc.v1", "io.containerd.runc.v2"];

/**
 * @param config as containerd tells it. Other runtimes tell theirs in other forms, or not at all: then nothing is known.
 */
export function isDefaultPlain(config: string): boolean {
  let told: unknown;
  try {
    told = JSON.parse(config);
  } catch {
    return false;
  }
  const { containerd } = objectOf(told);
  const { defaultRuntimeName: name, runtimes } = objectOf(containerd);
  const handlers = objectOf(runtimes);
  if (typeof name !== "string" || !isPlainHandler(handlers[name])) return false;
  return handlers[untrusted] === undefined || isPlainHandler(handlers[untrusted]);
}

function isPlainHandler(handler: unknown): boolean {
  const { runtimeType, runtimePath = "", options } = objectOf(handler);
  // With a path, the shim is whatever lies there.
  if (!runcShims.includes(runtimeType) || runtimePath !== "") return false;
  const { BinaryName: binary = "" } = objectOf(options);
  return typeof binary === "string" && isPlainRuntime(binary || "runc");
}

function objectOf(value: unknown): Record<string, unknown> {
  return isObject(value) ? value : {};
}
