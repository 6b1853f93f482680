-- EventLog.read. KEYS: s, m. ARGV 1 after, 2 limit, 3 max bytes.
-- Gives epoch, top, oldest, newest event_id, event_id at `after` ('' when it is gone), then entries in chunks as XRANGE
-- gives them, possibly a few more than max bytes allow.
local stream, meta = KEYS[1], KEYS[2]
local m = redis.call('HMGET', meta, 'epoch', 'top', 'last')
if not m[1] then return {'', 0, 1, '', ''} end
local top, after, left, room = tonumber(m[2]), tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local anchor = ''
if after == top then
  anchor = m[3]
elseif after > 0 and after < top then
  local entry = redis.call('XRANGE', stream, ARGV[1], ARGV[1], 'COUNT', 1)[1]
  if entry then anchor = entry[2][2] end
end
local reply = {m[1], top, oldest_of(stream, top), m[3], anchor}
local from = after < top and after + 1 or nil
while from and left > 0 and room > 0 do
  local chunk = redis.call('XRANGE', stream, int(from), '+', 'COUNT', math.min(left, 50))
  if #chunk == 0 then break end
  for _, entry in ipairs(chunk) do room = room - #entry[2][4] end
  left = left - #chunk
  from = offset_of(chunk[#chunk][1]) + 1
  reply[#reply + 1] = chunk
end
return reply
