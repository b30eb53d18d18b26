import { writeFile } from "node:fs/promises";

// libuv's pool runs file and name look-ups, four at a time by default: a few calls on a volume whose server is gone
// would stop every other file operation of the agent. Idle threads cost some 20 KB each.
const threadPoolSize = 16;

/**
 * What must happen before anything else in the process: sets the size of libuv's thread pool (libuv reads it once,
 * at the first file operation; a value in the environment wins) and names the process for `ps` and `top`, where Node
 * would show "MainThread". Never rejects.
 */
export async function setUpProcess(): Promise<void> {
  process.env["UV_THREADPOOL_SIZE"] ??= String(threadPoolSize);
  // The kernel may be built without it; the name is a courtesy.
  await writeFile("/proc/self/comm", "nodelet").catch(() => {});
}
