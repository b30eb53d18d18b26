import type Docker from "dockerode";
import type { Clock } from "../../lib/clock.ts";
import { AgentError, hasCode, messageOf } from "../../lib/errors.ts";
import type { ImageName } from "../images-name.ts";
import type { ImageAuth, PullProgress } from "../port.ts";
import type { DockerClient } from "./client.ts";
import { pullMessages, PullTracker } from "./pull-progress.ts";
import { DockerHTTPError } from "./transport.ts";

// A pull that tells nothing for so long hangs: `--image-pull-progress-deadline`'s default, of the days when kubelets drove
// Docker. A busy daemon tells something several times a second.
export const pullStallMs = 60_000;

// Layers that wait for others, of this pull or of anybody's, may do so for long; not for ever, since one that got its turn
// and hears nothing of its registry looks the same.
export const pullHeldUpMs = 30 * 60_000;

export interface DockerPull {
  /** As asked for, for messages. */
  image: string;
  name: ImageName;
  auth?: ImageAuth;
  signal?: AbortSignal;
  onProgress?(progress: PullProgress): void;
  clock: Clock;
}

/**
 * Pulls an image to its end. An abort of the request is how the daemon is told to give up. One that waits for a
 * registry notices when that says something.
 *
 * Rejects with what the daemon says, DeadlineExceeded if there was no progress for {@link pullStallMs}, or for
 * {@link pullHeldUpMs} where the daemon has it wait, Canceled once `signal` aborts.
 */
export async function pullFromRegistry(client: DockerClient, pull: DockerPull): Promise<void> {
  const { image, name, auth, signal, onProgress, clock } = pull;
  const stalled = new AbortController();
  const tracker = new PullTracker();
  let patienceMs = pullStallMs;
  let timer = clock.after(patienceMs, () => stalled.abort());
  const run = async (abortSignal: AbortSignal) => {
    // Without a tag the daemon would pull all there are. A digest wins over a tag, as the CRI runtimes have it.
    const from = { fromImage: name.repository, tag: name.digest === "" ? name.tag : name.digest };
    const credential = auth === undefined ? undefined : registryAuth(auth);
    const request = { ...from, abortSignal };
    const stream = (await client.docker.createImage(credential, request)) as unknown as AsyncIterable<Buffer>;
    for await (const message of pullMessages(stream)) {
      abortSignal.throwIfAborted();
      if (message.error !== undefined) throw daemonError(image, message.error, undefined);
      const told = tracker.take(message);
      if (told === "nothing") continue;
      timer.cancel();
      patienceMs = tracker.isHeldUp ? pullHeldUpMs : pullStallMs;
      timer = clock.after(patienceMs, () => stalled.abort());
      if (told === "progress") onProgress?.(tracker.progress);
    }
  };
  try {
    const signals = signal === undefined ? [stalled.signal] : [stalled.signal, signal];
    const options = { timeoutMs: Number.POSITIVE_INFINITY, signal: AbortSignal.any(signals) };
    await client.call(`pull image ${image}`, run, options);
  } catch (err) {
    if (stalled.signal.aborted && signal?.aborted !== true) {
      const { layersDone, layers, downloadedBytes } = tracker.progress;
      const state = `${layersDone} of ${layers} layers done, ${downloadedBytes} bytes downloaded`;
      const message = `pull image ${image}: no progress for ${patienceMs / 1_000} s (${state}): given up`;
      throw new AgentError("DeadlineExceeded", message, { cause: err });
    }
    if (hasCode(err, "Canceled") || !(err instanceof AgentError) || !(err.cause instanceof DockerHTTPError)) throw err;
    throw daemonError(image, messageOf(err.cause), err);
  } finally {
    timer.cancel();
  }
}

/** What the daemon says, in the form that people know from `docker pull`; it does not always name the image. */
function daemonError(image: string, words: string, cause: AgentError | undefined): AgentError {
  const message = `pull image ${image}: Error response from daemon: ${words.trim()}`;
  return new AgentError(cause?.code ?? "Internal", message, cause === undefined ? {} : { cause });
}

/**
 * The daemon's form of a credential. It reads user and password only, never the two in one that `docker login` keeps: that
 * is taken apart here.
 */
export function registryAuth(auth: ImageAuth): Docker.AuthConfig {
  const { username = "", password = "", serverAddress, identityToken, registryToken } = auth;
  const inOne = username === "" ? Buffer.from(auth.auth ?? "", "base64").toString("utf8") : "";
  const colon = inOne.indexOf(":");
  const user = colon < 0 ? { username, password } : splitAt(inOne, colon);
  return {
    ...(user.username === "" ? {} : user),
    ...(serverAddress === undefined ? {} : { serveraddress: serverAddress }),
    ...(identityToken === undefined ? {} : { identitytoken: identityToken }),
    ...(registryToken === undefined ? {} : { registrytoken: registryToken }),
  };
}

function splitAt(text: string, colon: number): { username: string; password: string } {
  // Some tools pad the password with NULs.
  return { username: text.slice(0, colon), password: text.slice(colon + 1).replace(/\0+$/, "") };
}
