import { createHash } from "node:crypto";
import { renderTar, type TarEntry } from "./tar.ts";

export interface ImageSpec {
  /** Full reference with registry and tag. */
  name: string;
  /** Lowest first. Layers that are the same object are stored once. */
  layers: readonly (readonly TarEntry[])[];
  env?: readonly string[];
  entrypoint?: readonly string[];
  cmd?: readonly string[];
  /** "1000", "1000:1000" or a name of /etc/passwd. */
  user?: string;
  workingDir?: string;
  labels?: Readonly<Record<string, string>>;
}

interface Blob {
  mediaType: string;
  digest: string;
  bytes: Buffer;
}

/** An image as registries and runtimes store it. */
export interface Image {
  name: string;
  manifest: Blob;
  config: Blob;
  layers: Blob[];
}

const layerType = "application/vnd.oci.image.layer.v1.tar";
const configType = "application/vnd.oci.image.config.v1+json";
const manifestType = "application/vnd.oci.image.manifest.v1+json";
const platform = { os: "linux", architecture: process.arch === "arm64" ? "arm64" : "amd64" };

/** Makes an OCI image for this machine's architecture. */
export function buildImage(spec: ImageSpec): Image {
  const layers = spec.layers.map((entries) => blob(layerType, renderTar(entries)));
  const config = json(configType, {
    ...platform,
    config: {
      Env: ["PATH=/bin:/sbin:/usr/bin:/usr/sbin", ...(spec.env ?? [])],
      ...(spec.entrypoint === undefined ? {} : { Entrypoint: spec.entrypoint }),
      ...(spec.cmd === undefined ? {} : { Cmd: spec.cmd }),
      ...(spec.user === undefined ? {} : { User: spec.user }),
      ...(spec.workingDir === undefined ? {} : { WorkingDir: spec.workingDir }),
      ...(spec.labels === undefined ? {} : { Labels: spec.labels }),
    },
    rootfs: { type: "layers", diff_ids: layers.map(({ digest }) => digest) },
  });
  const manifest = json(manifestType, {
    schemaVersion: 2,
    mediaType: manifestType,
    config: descriptor(config),
    layers: layers.map(descriptor),
  });
  return { name: spec.name, manifest, config, layers };
}

/** An OCI archive for `ctr images import`; the names travel in annotations. */
export function renderArchive(images: readonly Image[]): Buffer {
  const blobs = new Map<string, Buffer>();
  for (const { manifest, config, layers } of images) {
    for (const { digest, bytes } of [manifest, config, ...layers]) blobs.set(digest, bytes);
  }
  const index = {
    schemaVersion: 2,
    manifests: images.map(({ name, manifest }) => ({
      ...descriptor(manifest),
      platform,
      annotations: { "io.containerd.image.name": name, "org.opencontainers.image.ref.name": name.replace(/^.*:/, "") },
    })),
  };
  return renderTar([
    { kind: "file", path: "oci-layout", content: JSON.stringify({ imageLayoutVersion: "1.0.0" }) },
    { kind: "file", path: "index.json", content: JSON.stringify(index) },
    { kind: "dir", path: "blobs" },
    { kind: "dir", path: "blobs/sha256" },
    ...[...blobs].map(
      ([digest, content]): TarEntry => ({ kind: "file", path: `blobs/${digest.replace(":", "/")}`, content }),
    ),
  ]);
}

function json(mediaType: string, value: unknown): Blob {
  return blob(mediaType, Buffer.from(JSON.stringify(value)));
}

function blob(mediaType: string, bytes: Buffer): Blob {
  return { mediaType, bytes, digest: `sha256:${createHash("sha256").update(bytes).digest("hex")}` };
}

function descriptor({ mediaType, digest, bytes }: Blob) {
  return { mediaType, digest, size: bytes.length };
}
