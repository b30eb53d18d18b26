import { fileURLToPath } from "node:url";
import type { MethodDefinition } from "@grpc/grpc-js";
import type * as ProtoLoader from "@grpc/proto-loader";

/**
 * The gRPC interfaces in `proto/`, loaded when first asked for.
 *
 * From sources they are read from the `.proto` files. The release is one file without a file system beside it: its
 * build defines the global `NODELET_PROTO_JSON` as an object from file name to protobufjs' JSON form of that file,
 * `protobuf.parse(text, { keepCase: true }).root.toJSON()`.
 */
export type ProtoFile = "runtime.v1.proto" | "containerd-events.proto" | "pluginregistration.v1.proto" | "csi.v1.proto";

/** The methods of one service, and how to write and read the messages of one package, by full name. */
export interface ProtoPackage {
  method(service: string, method: string): MethodDefinition<object, object>;
  /** Reads one message; absent fields have proto3's defaults, absent messages are null. */
  decode(message: string, bytes: Uint8Array): object;
}

declare const NODELET_PROTO_JSON: Readonly<Record<string, object>> | undefined;

// Field names stay as the protocol spells them, 64-bit integers arrive as decimal strings (no rounding), enum values as
// their names, and what a peer left out has its default: who reads a message meets no undefined.
const loadOptions: ProtoLoader.Options = { keepCase: true, longs: String, enums: String, defaults: true };

/** Parses one of the interface files: some 50 ms and 7 MB for CRI, so only callers that speak it should ask. */
export async function loadProto(file: ProtoFile): Promise<ProtoPackage> {
  const loader = await import("@grpc/proto-loader");
  const definition =
    typeof NODELET_PROTO_JSON === "undefined"
      ? loader.loadSync(fileURLToPath(new URL(`../../../proto/${file}`, import.meta.url)), loadOptions)
      : loader.fromJSON(embedded(NODELET_PROTO_JSON, file), loadOptions);
  return {
    method: (service, method) => {
      const found = definition[service];
      const described = found !== undefined && !("format" in found) ? found[method] : undefined;
      if (described === undefined) throw new Error(`${file} has no method ${service}/${method}`);
      return described;
    },
    decode: (message, bytes) => {
      const found = definition[message];
      if (found === undefined || !("deserialize" in found) || typeof found.deserialize !== "function") {
        throw new Error(`${file} has no message ${message}`);
      }
      return found.deserialize(Buffer.from(bytes));
    },
  };
}

function embedded(
  files: Readonly<Record<string, object>>,
  file: ProtoFile,
): Parameters<typeof ProtoLoader.fromJSON>[0] {
  const json = files[file];
  if (json === undefined) throw new Error(`this build of nodelet was made without ${file}`);
  return json;
}
