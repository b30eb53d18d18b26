import { exec } from "../lib/exec.ts";

// A file system that answers at all does so within this; a pod whose path does not is tried again.
export const lookTimeoutMs = 10_000;
// File types of stat(2).
const typeMask = 0o170_000;

/** What there is at a path. */
export type Look =
  | { kind: "there" /** As in `stat`: the bits of the file type alone. */; fileType: number }
  | { kind: "absent" }
  /** It cannot be looked at. */
  | { kind: "refused"; message: string }
  /** Its file system does not answer. */
  | { kind: "silent"; message: string };

/**
 * Looks at `path`, links followed. Another process does so: on a network mount whose server is gone a call never returns,
 * and it would take a thread of ours with it for good. Rejects with the signal's reason when it aborts.
 */
export async function lookAt(path: string, signal: AbortSignal): Promise<Look> {
  // In short options, as busybox knows no others.
  const args = ["LC_ALL=C", "stat", "-L", "-c", "%f", "--", path];
  const { failure, stdout, stderr, message } = await exec("env", args, { timeoutMs: lookTimeoutMs, signal });
  if (failure === undefined) return { kind: "there", fileType: Number.parseInt(stdout, 16) & typeMask };
  signal.throwIfAborted();
  if (failure === "timeout") return { kind: "silent", message };
  const isAbsent = failure === "exit" && /No such file or directory|Not a directory/.test(stderr);
  return isAbsent ? { kind: "absent" } : { kind: "refused", message };
}
