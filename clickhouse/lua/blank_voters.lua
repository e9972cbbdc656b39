#!lua flags=allow-oom
-- A page of a stream once more, with the same ids, without the hashes of erased voters, beside the stream; with the last
-- page the copy takes its place.
--
-- KEYS[1] dead:{s}, or events:{s} in a restore, when nobody else is there   KEYS[2] the copy   KEYS[3] who makes it
-- ARGV[1] the id after which to go on, "" = from the beginning   ARGV[2] entries of a page   ARGV[3] token of this copy
-- ARGV[4] time to live of a copy, s   ARGV[5] what stands in the place of a hash
-- then per voter: hash, ms until which it is erased
-- Returns {last id copied, 1 when the copy is in place, entries changed}. Error: STALE when another copy is being made,
-- or this one expired.
--
-- Entries cannot be changed, and a deleted one stays in its node, in memory and in every snapshot, until the whole node
-- goes. Hence all of it anew, by pages: a long script would keep everybody waiting. The last page and the change of
-- place are atomic, as letters come meanwhile; two copies at once would undo each other. A dead letter is as old as the
-- entry it names (`id`). Groups are made again by the next commits; the counts of entries ever added are kept.
local call = redis.call
if ARGV[1] == '' then
  if not call('SET', KEYS[3], ARGV[3], 'NX', 'EX', ARGV[4]) then
    return redis.error_reply('STALE another erasure is under way')
  end
  call('DEL', KEYS[2])
elseif call('GET', KEYS[3]) ~= ARGV[3] or call('EXISTS', KEYS[2]) == 0 then
  return redis.error_reply('STALE the copy has expired')
end
local entries = call('XRANGE', KEYS[1], ARGV[1] == '' and '-' or '(' .. ARGV[1], '+', 'COUNT', ARGV[2])
local last, changed = ARGV[1], 0
for _, entry in ipairs(entries) do
  local ms, fields = tonumber(string.match(entry[1], '^(%d+)')), entry[2]
  for i = 1, #fields, 2 do
    if fields[i] == 'id' then ms = tonumber(string.match(fields[i + 1], '^(%d+)')) or ms end
  end
  for i = 1, #fields, 2 do
    if fields[i] == 'd' then
      for at = 6, #ARGV, 2 do
        if ms <= tonumber(ARGV[at + 1]) then
          local text, count = string.gsub(fields[i + 1], '"' .. ARGV[at] .. '"', '"' .. ARGV[5] .. '"')
          if count > 0 then fields[i + 1], changed = text, changed + 1 end
        end
      end
    end
  end
  call('XADD', KEYS[2], entry[1], unpack(fields))
  last = entry[1]
end
call('EXPIRE', KEYS[2], ARGV[4])
call('EXPIRE', KEYS[3], ARGV[4])
if #entries == tonumber(ARGV[2]) then
  return {last, 0, changed}
end
if call('EXISTS', KEYS[2]) == 1 then
  local info, named = call('XINFO', 'STREAM', KEYS[1]), {}
  for i = 1, #info, 2 do
    named[info[i]] = info[i + 1]
  end
  call('XSETID', KEYS[2], named['last-generated-id'], 'ENTRIESADDED', named['entries-added'], 'MAXDELETEDID',
    named['max-deleted-entry-id'])
  call('RENAME', KEYS[2], KEYS[1])
  call('PERSIST', KEYS[1])
end
call('DEL', KEYS[3])
return {last, 1, changed}
