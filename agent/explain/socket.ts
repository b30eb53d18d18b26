import { chmod, lstat, mkdtemp, realpath, rename, rm, stat } from "node:fs/promises";
import { connect, type Server } from "node:net";
import { dirname, join } from "node:path";
import { errnoOf, ignoreErrno } from "../lib/errno.ts";
import { AgentError } from "../lib/errors.ts";

// Only root may ask: pods' names, images and errors are nobody else's business.
const socketMode = 0o600;
const writableByOthers = 0o022;

/** Where a server listens. */
export interface PrivateSocket {
  /** False once somebody took the socket away or put another one in its place: nobody finds the server any more. */
  isInPlace(): Promise<boolean>;
  /** Takes the socket away, unless another one is in its place; the server is to be closed before. */
  remove(): Promise<void>;
}

/**
 * Lets `server` listen at `path`, readable for nobody else. What an agent that was killed left there is replaced.
 * The socket comes to its place ready and with its mode, in one step.
 *
 * Rejects with AlreadyExists if another agent listens there, with Invalid if the directory is not safe to do so.
 */
export async function listenPrivately(server: Server, path: string): Promise<PrivateSocket> {
  const dir = await realpath(dirname(path));
  const { uid, mode } = await stat(dir);
  if (uid !== process.getuid?.() || (mode & writableByOthers) !== 0) {
    throw new AgentError("Invalid", `${dir} must be owned by the agent's user and writable for nobody else`);
  }
  const old = await lstat(path).catch(ignoreErrno("ENOENT"));
  if (old?.isSocket() === false) throw new AgentError("Invalid", `${path} is in the way and no socket: remove it`);
  if (old !== undefined && (await isListening(path))) {
    throw new AgentError("AlreadyExists", `another agent listens at ${path}: one root directory is for one agent`);
  }
  const own = await mkdtemp(join(dir, ".s-")); // short: addresses of sockets have 107 bytes
  try {
    const place = join(own, "s");
    await listen(server, place);
    await chmod(place, socketMode);
    // Nobody else gets this number as long as the server listens.
    const { dev, ino } = await lstat(place);
    await rename(place, path);
    const isInPlace = async () => {
      const present = await lstat(path).catch(ignoreErrno("ENOENT"));
      return present?.dev === dev && present.ino === ino;
    };
    const remove = async () => {
      if (await isInPlace()) await rm(path, { force: true });
    };
    return { isInPlace, remove };
  } catch (err) {
    server.close();
    throw err;
  } finally {
    await rm(own, { recursive: true, force: true });
  }
}

async function listen(server: Server, path: string): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  server.once("error", reject);
  server.listen(path, () => {
    server.off("error", reject);
    resolve();
  });
  await promise;
}

async function isListening(path: string): Promise<boolean> {
  const { promise, resolve, reject } = Promise.withResolvers<boolean>();
  const socket = connect(path);
  socket.once("connect", () => resolve(true));
  socket.once("error", (err) => {
    if (["ECONNREFUSED", "ENOENT"].includes(errnoOf(err) ?? "")) resolve(false);
    else reject(err);
  });
  try {
    return await promise;
  } finally {
    socket.destroy();
  }
}
