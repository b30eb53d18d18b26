import { isObject, type JsonObject, jsonEqual } from "./json.ts";
import { badRequest, ApiError } from "./status.ts";

/** RFC 7386: objects merge, null removes, everything else replaces. Returns a new value. */
export function mergePatch(target: unknown, patch: unknown): unknown {
  if (!isObject(patch)) return patch;
  const result: JsonObject = isObject(target) ? { ...target } : {};
  for (const [field, value] of Object.entries(patch)) {
    if (value === null) {
      delete result[field];
    } else {
      result[field] = mergePatch(result[field], value);
    }
  }
  return result;
}

/** RFC 6902. Returns a new document; throws 400 for a malformed patch and 422 for one that does not fit. */
export function jsonPatch(document: unknown, operations: unknown): unknown {
  if (!Array.isArray(operations)) throw badRequest("a JSON patch is a list of operations");
  let result: unknown = structuredClone(document);
  for (const operation of operations) {
    if (!isObject(operation)) throw badRequest("each operation of a JSON patch is an object");
    result = applyOperation(result, operation);
  }
  return result;
}

function applyOperation(document: unknown, operation: JsonObject): unknown {
  const { op, path, from, value } = operation;
  if (typeof op !== "string" || typeof path !== "string") throw badRequest("a JSON patch operation needs op and path");
  const tokens = pointer(path);
  switch (op) {
    case "add":
      return add(document, tokens, structuredClone(value));
    case "remove":
      return remove(document, tokens).document;
    case "replace": {
      if (tokens.length === 0) return structuredClone(value);
      const taken = remove(document, tokens);
      return add(taken.document, tokens, structuredClone(value));
    }
    case "move": {
      const taken = remove(document, pointer(from));
      return add(taken.document, tokens, taken.value);
    }
    case "copy":
      return add(document, tokens, structuredClone(read(document, pointer(from))));
    case "test":
      if (!jsonEqual(read(document, tokens), value)) throw unfit(`testing path ${path} failed`);
      return document;
    default:
      throw badRequest(`unexpected kind of JSON patch operation: ${op}`);
  }
}

function pointer(path: unknown): string[] {
  if (typeof path !== "string" || (path !== "" && !path.startsWith("/"))) {
    throw badRequest(`not a JSON pointer: ${JSON.stringify(path)}`);
  }
  return path
    .split("/")
    .slice(1)
    .map((token) => token.replaceAll("~1", "/").replaceAll("~0", "~"));
}

function read(document: unknown, tokens: readonly string[]): unknown {
  let value: unknown = document;
  for (const token of tokens) {
    if (Array.isArray(value)) {
      value = value[indexIn(value, token, value.length - 1)];
    } else if (isObject(value) && Object.hasOwn(value, token)) {
      value = value[token];
    } else {
      throw unfit(`there is nothing at /${tokens.join("/")}`);
    }
  }
  return value;
}

// The document is a private copy here, so that these may change it in place.
function add(document: unknown, tokens: readonly string[], value: unknown): unknown {
  const last = tokens.at(-1);
  if (last === undefined) return value;
  const parent = read(document, tokens.slice(0, -1));
  if (Array.isArray(parent)) {
    parent.splice(last === "-" ? parent.length : indexIn(parent, last, parent.length), 0, value);
  } else if (isObject(parent)) {
    parent[last] = value;
  } else {
    throw unfit(`there is no container at /${tokens.slice(0, -1).join("/")}`);
  }
  return document;
}

function remove(document: unknown, tokens: readonly string[]): { document: unknown; value: unknown } {
  const value = read(document, tokens);
  const last = tokens.at(-1);
  if (last === undefined) return { document: null, value };
  const parent = read(document, tokens.slice(0, -1));
  if (Array.isArray(parent)) {
    parent.splice(indexIn(parent, last, parent.length - 1), 1);
  } else if (isObject(parent)) {
    delete parent[last];
  }
  return { document, value };
}

function indexIn(list: unknown[], token: string, max: number): number {
  const index = /^(0|[1-9]\d*)$/.test(token) ? Number(token) : Number.NaN;
  if (!(index <= max)) throw unfit(`index ${token} is outside the list of ${list.length}`);
  return index;
}

function unfit(message: string): ApiError {
  return new ApiError(422, "Invalid", `the server rejected our request due to an error in our request: ${message}`);
}
