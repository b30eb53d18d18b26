import type { Pod } from "../../../agent/kube/types.ts";
import type { Clock } from "../../../agent/lib/clock.ts";
import { AgentError } from "../../../agent/lib/errors.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import { createImageManager, type ImageManagerOptions, ImagePullError } from "../../../agent/runtime/images.ts";
import type {
  ImageAuth,
  ImageInfo,
  ImageService,
  PodSandboxConfig,
  PullProgress,
} from "../../../agent/runtime/port.ts";
import { FakeClock } from "../kube/fake-clock.ts";

export const info = (id: string): ImageInfo => ({
  id,
  repoTags: [],
  repoDigests: [],
  sizeBytes: 1234,
  uid: undefined,
  username: "",
  pinned: false,
});

/** A registry and a store: pulls end when the test says so, unless `instant`. */
class FakeImages implements ImageService {
  readonly present = new Map<string, ImageInfo>();
  readonly pulls: {
    image: string;
    auth: ImageAuth | undefined;
    end: (err?: Error) => void;
    signal: AbortSignal | undefined;
    onProgress: ((progress: PullProgress) => void) | undefined;
  }[] = [];
  statusError: Error | undefined;
  instant = true;
  pullError: ((auth: ImageAuth | undefined) => Error | undefined) | undefined;

  listImages = async () => [...this.present.values()];
  imageStatus = async (image: string) => {
    if (this.statusError !== undefined) throw this.statusError;
    return this.present.get(image);
  };
  pullImage: ImageService["pullImage"] = async (image, { auth, signal, onProgress }) => {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const end = (err?: Error) => (err === undefined ? resolve() : reject(err));
    this.pulls.push({ image, auth, end, signal, onProgress });
    signal?.addEventListener("abort", () => end(new AgentError("Canceled", "canceled")));
    const err = this.pullError?.(auth);
    if (this.instant || err !== undefined) end(err);
    await promise;
    const id = `sha256:${image}`;
    this.present.set(image, info(id)).set(id, info(id));
    return id;
  };
  removeImage = async (image: string) => void this.present.delete(image);
  imagesInUse = async () => new Set<string>();
  fsInfo = async () => ({ imageFilesystems: [], containerFilesystems: [] });
}

const never = new AbortController().signal;
const sandbox = {} as PodSandboxConfig; // travels to the runtime untouched

/** The machine's clock as people set it, while `clock` goes on evenly. */
export function settable(clock: FakeClock): Clock & { set(byMs: number): void } {
  let shiftMs = 0;
  const set = (byMs: number) => {
    shiftMs += byMs;
  };
  return { now: () => clock.now() + shiftMs, monotonic: clock.monotonic, sleep: clock.sleep, after: clock.after, set };
}

/** An image manager over a fake runtime, that notes its events. */
export function setUp(change: Partial<ImageManagerOptions> = {}) {
  const images = new FakeImages();
  const clock = new FakeClock();
  const events: string[] = [];
  const manager = createImageManager({
    images,
    clock,
    log: silentLogger,
    onEvent: (pod, _container, type, reason, message) =>
      events.push(`${pod.metadata.name} ${type} ${reason}: ${message}`),
    serializeImagePulls: false,
    registryPullQPS: 0,
    registryBurst: 0,
    ...change,
  });
  const ensure = async (
    image: string,
    options: {
      pod?: string;
      policy?: "Always" | "IfNotPresent" | "Never";
      auths?: ImageAuth[];
      signal?: AbortSignal;
    } = {},
  ) => {
    const name = options.pod ?? "web";
    const pod: Pod = { metadata: { name, namespace: "ns", uid: `uid-${name}` }, spec: { containers: [] } };
    const container = {
      name: "c",
      image,
      ...(options.policy === undefined ? {} : { imagePullPolicy: options.policy }),
    };
    return await manager.ensureImage(pod, container, sandbox, options.auths ?? [], options.signal ?? never);
  };
  const failure = async (...args: Parameters<typeof ensure>) => {
    const err: unknown = await ensure(...args).catch((e: unknown) => e);
    if (!(err instanceof ImagePullError)) throw new Error(`no ImagePullError but ${String(err)}`);
    return err;
  };
  return { images, clock, events, manager, ensure, failure };
}
